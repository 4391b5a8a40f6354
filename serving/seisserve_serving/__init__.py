"""The server: bundles over gRPC, with TensorFlow Serving's protocol and a seismic one."""
