// A streaming phase picker on onnxruntime's C++ API: samples from standard input in, picks as CSV out.
//
//   picker FOLDER --selftest
//   picker FOLDER --stdin --rate 100 --start 2024-05-01T00:00:00Z [--station NET.STA.LOC.BI] [--components ZNE]
//                 [--file model.ort] < samples.f32 > picks.csv
//
// FOLDER is the edge folder, with manifest.json and the model. The input is little-endian float32, one sample of each
// component after the other, without a gap. The same as picker.py, step by step: that file says why each step is so.

#include <onnxruntime_cxx_api.h>
#include <unistd.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <deque>
#include <fstream>
#include <functional>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "samples are read as little-endian float32"
#endif

namespace {

__extension__ typedef __int128 Wide;  // times in nanoseconds since 1970, multiplied by rates

constexpr std::int64_t kNs = 1'000'000'000;
constexpr double kNoiseS = 5.0, kGuardS = 0.2, kSignalS = 2.0;
constexpr double kHalfMaximumToSigma = 2.3548;
constexpr std::int64_t kReach = 300;
constexpr std::int64_t kGoldenStartNs = 1'704'067'200 * kNs;
const char* const kGoldenStation = "XX.GOLD..HH";
const char* const kColumns = "trace_id,phase,time,probability,uncertainty_s,snr_db,flags,model,version";

[[noreturn]] void fail(const std::string& why) { throw std::runtime_error(why); }

Wide floor_div(Wide a, Wide b) { return a / b - ((a % b != 0) && ((a < 0) != (b < 0))); }

// A sampling rate as the fraction of small integers that was meant.
struct Rate {
  double hz;
  std::int64_t numerator = 0, denominator = 1;

  explicit Rate(double value) : hz(value) {
    double best = std::numeric_limits<double>::infinity();
    for (std::int64_t d = 1; d <= 1000 && best > 0; ++d) {
      const std::int64_t n = std::llround(value * static_cast<double>(d));
      const double error = std::fabs(static_cast<double>(n) / static_cast<double>(d) - value);
      if (error < best) {
        best = error;
        numerator = n;
        denominator = d;
      }
    }
  }
  bool operator==(const Rate& other) const {
    return numerator == other.numerator && denominator == other.denominator;
  }
};

struct Reading {
  std::string label;
  std::size_t row;
  float threshold, half;
  double uncertainty_scale;
  std::vector<std::pair<double, double>> calibration;

  double calibrated(double height) const {
    if (calibration.empty()) return height;
    if (height <= calibration.front().first) return static_cast<float>(calibration.front().second);
    for (std::size_t k = 1; k < calibration.size(); ++k) {
      const auto [x0, y0] = calibration[k - 1];
      const auto [x1, y1] = calibration[k];
      if (height < x1) return static_cast<float>((y1 - y0) / (x1 - x0) * (height - x0) + y0);
    }
    return static_cast<float>(calibration.back().second);
  }
};

// Samples of each component, or values of each label: [rows][n].
using Rows = std::vector<std::vector<float>>;

class Model {
 public:
  std::string name, version, components;
  Rate rate{1};
  std::int64_t window, hop, blinding, edge, distance;
  std::vector<std::int64_t> lengths;
  std::vector<std::string> labels;
  std::vector<Reading> readings;
  std::int64_t stride;
  bool maximum, single;
  double golden_tolerance;

  Model(const std::string& folder, const std::string& file) {
    std::ifstream text(folder + "/manifest.json"), number(folder + "/VERSION");
    if (!text || !std::getline(number, version)) fail(folder + " is no edge folder: no manifest.json or VERSION");
    const auto manifest = nlohmann::json::parse(text);
    name = manifest.at("name");
    rate = Rate(manifest.at("sampling_rate_hz"));
    components = manifest.at("components");
    window = manifest.at("window_samples");
    hop = manifest.at("hop_samples");
    blinding = manifest.at("blinding_samples");
    edge = manifest.at("edge_samples");
    std::set<std::int64_t> choices = manifest.at("fragment_windows");
    choices.insert(window);
    lengths.assign(choices.begin(), choices.end());
    maximum = manifest.at("stacking") == "max";
    distance = std::llrint(manifest.at("minimum_pick_distance_s").get<double>() * rate.hz);
    golden_tolerance = manifest.at("golden_tolerance");
    const auto& output = manifest.at("outputs").at(0);
    labels = output.at("labels").get<std::vector<std::string>>();
    stride = output.at("stride");
    single = output.at("shape").size() == 2;
    for (const auto& [label, reading] : manifest.at("labels").items()) {
      if (label == "detection") continue;  // no phase
      const auto row = std::find(labels.begin(), labels.end(), label) - labels.begin();
      const double threshold = reading.at("threshold");
      readings.push_back({label, static_cast<std::size_t>(row), static_cast<float>(threshold),
                          static_cast<float>(threshold / 2), reading.at("uncertainty_scale"),
                          reading.at("calibration")});
    }
    input_ = manifest.at("input").at("name");
    output_ = output.at("name");
    if (output_ == input_) output_ += "_out";  // in an ONNX file no output may have the name of the input
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1).SetInterOpNumThreads(1).SetLogSeverityLevel(3);
    session_ = Ort::Session(environment_, (folder + "/" + file).c_str(), options);
  }

  // [length, components] -> [frames, labels], or [labels]; one after the other in memory.
  std::vector<float> run(std::vector<float>& given) {
    const auto width = static_cast<std::int64_t>(components.size());
    const std::int64_t shape[] = {1, static_cast<std::int64_t>(given.size()) / width, width};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto tensor = Ort::Value::CreateTensor<float>(memory, given.data(), given.size(), shape, 3);
    const char *inputs[] = {input_.c_str()}, *outputs[] = {output_.c_str()};
    auto found = session_.Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, 1);
    const float* values = found[0].GetTensorData<float>();
    return {values, values + found[0].GetTensorTypeAndShapeInfo().GetElementCount()};
  }

  std::int64_t fitting(std::int64_t samples) const { return *std::lower_bound(lengths.begin(), lengths.end(), samples); }

  // [components][n] -> [labels][n], or [labels][1]: the middle of each component's range is subtracted, a fragment is
  // padded with its last values.
  Rows curve(const std::vector<std::vector<double>>& samples) {
    const auto n = static_cast<std::int64_t>(samples[0].size()), length = fitting(n);
    std::vector<float> given(static_cast<std::size_t>(length) * samples.size());
    for (std::size_t c = 0; c < samples.size(); ++c) {
      const auto [low, high] = std::minmax_element(samples[c].begin(), samples[c].end());
      const double middle = *high / 2 + *low / 2;
      for (std::int64_t i = 0; i < length; ++i)
        given[i * samples.size() + c] = static_cast<float>(samples[c][std::min(i, n - 1)] - middle);
    }
    const auto frames = run(given);
    const auto width = labels.size();
    const auto last = static_cast<std::int64_t>(frames.size() / width) - 1;
    Rows found(width, std::vector<float>(single ? 1 : n));
    for (std::size_t label = 0; label < width; ++label)
      for (std::size_t i = 0; i < found[label].size(); ++i) {
        if (single || stride == 1) {
          found[label][i] = frames[i * width + label];
          continue;
        }
        // Straight lines between the middles of the frames.
        const double raw = (static_cast<double>(i) + 0.5) / static_cast<double>(stride) - 0.5;
        const double place = std::clamp(raw, 0.0, static_cast<double>(last));
        const auto below = static_cast<std::int64_t>(place);
        const auto share = static_cast<float>(place - static_cast<double>(below));
        const float lower = frames[below * width + label];
        found[label][i] = lower + (frames[std::min(below + 1, last) * width + label] - lower) * share;
      }
    return found;
  }

 private:
  Ort::Env environment_{ORT_LOGGING_LEVEL_ERROR, "picker"};
  Ort::Session session_{nullptr};
  std::string input_, output_;
};

// The last values of an endless record, numbered from its beginning.
template <typename T>
class Tape {
 public:
  std::int64_t end() const { return begin_ + static_cast<std::int64_t>(held_.size()); }
  T& operator[](std::int64_t k) { return held_[static_cast<std::size_t>(k - begin_)]; }
  void push(T value) { held_.push_back(value); }
  void extend(std::int64_t to, T value) { held_.resize(static_cast<std::size_t>(std::max(to, end()) - begin_), value); }
  std::vector<T> part(std::int64_t begin, std::int64_t end) {
    return {held_.begin() + (begin - begin_), held_.begin() + (end - begin_)};
  }
  // Values before that one are no longer needed; they go when they are half of all.
  void forget(std::int64_t before) {
    const auto gone = std::min(before, end()) - begin_;
    if (gone * 2 <= static_cast<std::int64_t>(held_.size())) return;
    held_.erase(held_.begin(), held_.begin() + gone);
    begin_ += gone;
  }

 private:
  std::vector<T> held_;
  std::int64_t begin_ = 0;
};

struct Pick {
  std::string phase;
  std::int64_t time_ns;
  double probability, uncertainty_s, snr_db;
  std::string flags;
};

struct Peak {
  std::int64_t sample;
  float height;
  Pick pick;
  bool kept = true, told = false;
};

double variance(std::vector<double>::const_iterator begin, std::vector<double>::const_iterator end) {
  const auto n = static_cast<double>(end - begin);
  double sum = 0, squares = 0;
  for (auto value = begin; value != end; ++value) sum += *value;
  for (auto value = begin; value != end; ++value) squares += (*value - sum / n) * (*value - sum / n);
  return squares / n;
}

// A record without a gap in which the same components are alive: samples in, final picks out.
class Segment {
 public:
  Segment(Model& model, std::int64_t start_ns, std::vector<bool> live)
      : model_(model), live_(std::move(live)), samples_(live_.size()), curve_(model.labels.size()) {
    const Wide intervals = static_cast<Wide>(start_ns) * model.rate.numerator;
    const Wide interval = static_cast<Wide>(kNs) * model.rate.denominator;
    const Wide unit = static_cast<Wide>(100) * model.rate.numerator;
    first_ = static_cast<std::int64_t>(floor_div(2 * intervals + interval, 2 * interval));
    offset_ns_ = static_cast<std::int64_t>(floor_div(2 * (intervals - first_ * interval) + unit, 2 * unit) * 100);
    noise_ = std::llrint(kNoiseS * model.rate.hz);
    guard_ = std::llrint(kGuardS * model.rate.hz);
    signal_ = std::llrint(kSignalS * model.rate.hz);
    block_ = std::max<std::int64_t>(1, std::llrint(model.rate.hz / 4));
    phases_.resize(model.readings.size());
  }

  // One sample of each component that is alive.
  std::vector<Pick> feed(const float* sample) {
    for (std::size_t c = 0; c < live_.size(); ++c) samples_[c].push(live_[c] ? static_cast<double>(*sample++) : 0.0);
    const auto end = samples_[0].end();
    if (next_ + model_.window + (model_.blinding > 0) <= end) {
      run(next_, false);
      next_ += model_.hop - (first_ + next_) % model_.hop;
    }
    if (done_ < 0) return {};
    const auto soonest = std::max(end - model_.window, done_ + 1) + model_.blinding;
    settle(model_.single ? curve_[0].end() : soonest);
    const auto ready = std::min({final_ - kReach, end - signal_, end - model_.edge});
    return ready - read_ >= block_ ? picks(ready, false) : std::vector<Pick>{};
  }

  std::vector<Pick> finish() {
    const auto end = samples_[0].end();
    if (end == 0) return {};
    const auto last = std::max<std::int64_t>(end - model_.window, 0);
    if (last > done_)
      run(last, true);
    else if (model_.single)
      for (std::size_t k = 0; k < curve_.size(); ++k) curve_[k].extend(end, knot_[k][0]);
    settle(end);
    return picks(end, true);
  }

 private:
  struct Phase {
    bool open = false;
    float height = -INFINITY;
    std::optional<Peak> top;
    std::deque<Peak> recent;
  };

  void run(std::int64_t start, bool closes) {
    const auto end = std::min(start + model_.window, samples_[0].end());
    std::vector<std::vector<double>> given;
    for (auto& row : samples_) given.push_back(row.part(start, end));
    const auto found = model_.curve(given);
    done_ = start;
    if (model_.single) return line(start, end, found, closes);
    const auto begin = start ? start + model_.blinding : 0, reach = closes ? end : end - model_.blinding;
    count_.extend(reach, 0);
    for (std::size_t k = 0; k < curve_.size(); ++k) {
      curve_[k].extend(reach, model_.maximum ? -INFINITY : 0.0f);
      for (auto i = begin; i < reach; ++i) {
        const float value = found[k][static_cast<std::size_t>(i - start)];
        curve_[k][i] = model_.maximum ? std::max(curve_[k][i], value) : curve_[k][i] + value;
      }
    }
    for (auto i = begin; i < reach; ++i) count_[i] += 1;
  }

  // Straight lines between the middles of windows that have one value each.
  void line(std::int64_t start, std::int64_t end, const Rows& found, bool closes) {
    const auto middle = std::min(start + model_.fitting(end - start) / 2, end - 1);
    for (std::size_t k = 0; k < curve_.size(); ++k) {
      const double high = found[k][0], low = knot_.empty() ? high : knot_[k][0];
      const auto before = knot_.empty() ? 0 : curve_[k].end() - 1;
      const double slope = middle > before ? (high - low) / static_cast<double>(middle - before) : 0;
      for (auto i = curve_[k].end(); i <= middle; ++i)
        curve_[k].push(static_cast<float>(i == middle ? high : slope * static_cast<double>(i - before) + low));
      if (closes) curve_[k].extend(end, found[k][0]);
    }
    knot_ = found;
  }

  void settle(std::int64_t final) {
    if (!model_.single && !model_.maximum)
      for (auto i = final_; i < final; ++i)
        for (auto& row : curve_) row[i] /= count_[i];
    final_ = std::max(final, final_);
  }

  std::vector<Pick> picks(std::int64_t ready, bool closed) {
    std::vector<Pick> found;
    for (std::size_t k = 0; k < phases_.size(); ++k) read(phases_[k], model_.readings[k], ready, closed, found);
    read_ = ready;
    for (auto& row : curve_) row.forget(ready - kReach);
    count_.forget(final_);
    for (auto& row : samples_) row.forget(std::min(samples_[0].end() - model_.window, ready - noise_ - guard_));
    std::sort(found.begin(), found.end(), [](const Pick& a, const Pick& b) {
      return std::tie(a.time_ns, a.phase) < std::tie(b.time_ns, b.phase);
    });
    return found;
  }

  void read(Phase& phase, const Reading& reading, std::int64_t end, bool closed, std::vector<Pick>& found) {
    for (auto i = read_; i < end; ++i) {
      const float value = curve_[reading.row][i];
      if (!(value >= reading.half)) {
        if (phase.open) close(phase);
        continue;
      }
      phase.open = true;
      if (value > phase.height) {
        phase.height = value;
        const bool reaches = value >= reading.threshold;
        const bool highest = i + 1 >= end || !(curve_[reading.row][i + 1] > value);  // measuring a rise is in vain
        if (reaches && highest) phase.top = Peak{i, value, measure(reading, i)};
      }
    }
    if (closed && phase.open) close(phase);
    settled(phase, end, closed, found);
  }

  void close(Phase& phase) {
    const auto top = std::move(phase.top);
    phase.open = false;
    phase.height = -INFINITY;
    phase.top.reset();
    if (!top) return;
    phase.recent.push_back(*top);
    auto& late = phase.recent.back();
    for (std::size_t k = 0; k + 1 < phase.recent.size(); ++k) {
      auto& early = phase.recent[k];
      if (late.sample - early.sample < model_.distance) (late.height > early.height ? early : late).kept = false;
    }
  }

  void settled(Phase& phase, std::int64_t end, bool closed, std::vector<Pick>& found) {
    for (auto& peak : phase.recent) {
      const bool rival = phase.top && phase.top->height > peak.height;
      const bool near = phase.top && phase.top->sample - peak.sample < model_.distance;
      if (peak.told || !(closed || (peak.sample + model_.distance <= end && !(rival && near)))) continue;
      peak.told = true;
      if (peak.kept) found.push_back(peak.pick);
    }
    const auto soonest = phase.top ? std::min(end, phase.top->sample) : end;
    const auto over = [&](const Peak& peak) { return peak.told && peak.sample + model_.distance <= soonest; };
    phase.recent.erase(std::remove_if(phase.recent.begin(), phase.recent.end(), over), phase.recent.end());
  }

  Pick measure(const Reading& reading, std::int64_t sample) {
    auto& row = curve_[reading.row];
    double fraction = 0;
    if (sample > 0 && sample < final_ - 1) {
      const double before = row[sample - 1], top = row[sample], after = row[sample + 1];
      const double bend = before - 2 * top + after;
      if (bend < 0) fraction = std::min(std::max(0.5 * (before - after) / bend, -0.5), 0.5);
    }
    const double width = half_width(row, sample) * 2 / kHalfMaximumToSigma / model_.rate.hz;
    return {reading.label, time_ns(sample, fraction), reading.calibrated(row[sample]),
            width * reading.uncertainty_scale, snr_db(sample), flags(sample)};
  }

  double half_width(Tape<float>& row, std::int64_t sample) const {
    const float half = row[sample] / 2;
    const auto begin = std::max<std::int64_t>(sample - kReach, 0), end = std::min(sample + kReach, final_);
    auto before = sample, after = sample;
    while (before >= begin && !(row[before] < half)) --before;
    while (after < end && !(row[after] < half)) ++after;
    return static_cast<double>(after - before) / 2;
  }

  double snr_db(std::int64_t sample) {
    const auto begin = sample - guard_ - noise_, end = sample + signal_;
    if (begin < 0 || end > samples_[0].end()) return NAN;
    double before = 0, after = 0;
    for (auto& row : samples_) {
      const auto part = row.part(begin, end);
      before += variance(part.begin(), part.begin() + noise_);
      after += variance(part.begin() + noise_ + guard_, part.end());
    }
    return before > 0 && after > 0 ? 10 * std::log10(after / before) : NAN;
  }

  std::string flags(std::int64_t sample) const {
    const auto end = samples_[0].end();
    std::string found;
    if (std::min(sample, end - 1 - sample) < model_.edge) found += "|edge";
    if (end < model_.window) found += "|fragment";
    for (std::size_t c = 0; c < live_.size(); ++c)
      if (!live_[c]) found += std::string("|missing_") + model_.components[c];
    return found.empty() ? found : found.substr(1);
  }

  // Whole microseconds, halves to the even one.
  std::int64_t time_ns(std::int64_t sample, double fraction) const {
    const auto late = offset_ns_ + static_cast<std::int64_t>(std::nearbyint(fraction * kNs / model_.rate.hz));
    const Wide exact = static_cast<Wide>(first_ + sample) * kNs * model_.rate.denominator +
                       static_cast<Wide>(late) * model_.rate.numerator;
    const Wide unit = static_cast<Wide>(1000) * model_.rate.numerator;
    Wide whole = floor_div(exact, unit);
    const Wide twice = 2 * (exact - whole * unit);
    if (twice > unit || (twice == unit && whole % 2 != 0)) whole += 1;
    return static_cast<std::int64_t>(whole * 1000);
  }

  Model& model_;
  std::vector<bool> live_;
  std::vector<Tape<double>> samples_;
  std::vector<Tape<float>> curve_;  // final up to final_, sums or maxima beyond
  Tape<float> count_;
  Rows knot_;  // the last value of a network that says one thing of a window
  std::vector<Phase> phases_;
  std::int64_t first_, offset_ns_, noise_, guard_, signal_, block_;
  std::int64_t next_ = 0, done_ = -1, final_ = 0, read_ = 0;
};

std::string decimals(double value, int places) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", places, value);
  std::string found(text);
  while (found.back() == '0' && found[found.size() - 2] != '.') found.pop_back();
  return found;
}

std::string time_text(std::int64_t time_ns) {
  const auto micro = static_cast<std::int64_t>(floor_div(time_ns, 1000));
  const auto second = static_cast<std::time_t>(floor_div(micro, 1'000'000));
  std::tm parts{};
  gmtime_r(&second, &parts);
  char day[32], text[48];
  std::strftime(day, sizeof day, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text, sizeof text, "%s.%06dZ", day, static_cast<int>(micro - second * 1'000'000));
  return text;
}

std::string line(const Pick& pick, const std::string& station, const Model& model) {
  const auto snr = std::isnan(pick.snr_db) ? "" : decimals(pick.snr_db, 2);
  return station + "," + pick.phase + "," + time_text(pick.time_ns) + "," + decimals(pick.probability, 6) + "," +
         decimals(pick.uncertainty_s, 4) + "," + snr + "," + pick.flags + "," + model.name + "," + model.version;
}

std::int64_t parse_time(const std::string& text) {
  std::tm parts{};
  const char* rest = strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  if (!rest) fail("--start " + text + ": expected UTC as in 2024-05-01T00:00:00Z");
  std::int64_t fraction = 0;
  if (*rest == '.')
    for (std::int64_t unit = kNs / 10; *++rest >= '0' && *rest <= '9'; unit /= 10) fraction += (*rest - '0') * unit;
  if (std::strcmp(rest, "") != 0 && std::strcmp(rest, "Z") != 0) fail("--start " + text + ": expected UTC, as ...Z");
  return static_cast<std::int64_t>(timegm(&parts)) * kNs + fraction;
}

std::vector<float> read_floats(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) fail(path + ": cannot be read");
  std::vector<float> values(static_cast<std::size_t>(file.tellg()) / sizeof(float));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
  return values;
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> cells;
  std::istringstream stream(text + ",");
  for (std::string cell; std::getline(stream, cell, ',');) cells.push_back(cell);
  return cells;
}

// The golden windows, and the picks of the record that they make one after the other.
void selftest(Model& model, const std::string& folder) {
  const auto inputs = read_floats(folder + "/golden_input.bin"), outputs = read_floats(folder + "/golden_output.bin");
  const auto size = static_cast<std::size_t>(model.window) * model.components.size();
  double error = 0;
  std::size_t checked = 0;
  for (std::size_t begin = 0; begin + size <= inputs.size(); begin += size) {
    std::vector<float> window(inputs.begin() + begin, inputs.begin() + begin + size);
    for (const float value : model.run(window)) {
      if (checked == outputs.size()) fail("golden windows: there are fewer outputs than the model gives");
      error = std::max(error, std::fabs(static_cast<double>(value) - outputs[checked++]));
    }
  }
  if (checked != outputs.size() || !checked || !(error <= model.golden_tolerance))
    fail("golden windows: outputs differ by " + std::to_string(error));
  Segment segment(model, kGoldenStartNs, std::vector<bool>(model.components.size(), true));
  std::vector<Pick> picks;
  for (std::size_t k = 0; k < inputs.size(); k += model.components.size())
    for (const auto& pick : segment.feed(&inputs[k])) picks.push_back(pick);
  for (const auto& pick : segment.finish()) picks.push_back(pick);
  std::set<std::vector<std::string>> expected, found;
  std::ifstream table(folder + "/golden_picks.csv");
  std::string text;
  std::getline(table, text);
  while (std::getline(table, text)) expected.insert(split(text));
  for (const auto& pick : picks) found.insert(split(line(pick, kGoldenStation, model)));
  if (found.size() != expected.size())
    fail("golden record: " + std::to_string(found.size()) + " picks, expected " + std::to_string(expected.size()));
  for (auto a = found.begin(), b = expected.begin(); a != found.end(); ++a, ++b) {
    const double late = std::fabs(static_cast<double>(parse_time((*a)[2]) - parse_time((*b)[2]))) / kNs;
    const double other = std::fabs(std::stod((*a)[3]) - std::stod((*b)[3]));
    if ((*a)[1] != (*b)[1] || late * model.rate.hz > 0.5 || other > model.golden_tolerance + 1e-6)
      fail("golden record: " + (*a)[1] + " " + (*a)[2] + ", expected " + (*b)[1] + " " + (*b)[2]);
  }
  std::printf("selftest passed: %zu windows, largest difference %.1g; %zu picks as expected\n", inputs.size() / size,
              error, found.size());
}

void stream(Model& model, const std::string& components, const std::string& station, std::int64_t start_ns) {
  std::vector<bool> live;
  std::vector<std::size_t> order;  // from the order of the input to that of the model
  for (const char code : model.components) {
    const auto place = components.find(code);
    live.push_back(place != std::string::npos);
    if (live.back()) order.push_back(place);
  }
  if (order.size() != components.size() || order.empty())
    fail("--components " + components + ": expected some of " + model.components);
  Segment segment(model, start_ns, live);
  const auto print = [&](const std::vector<Pick>& picks) {
    for (const auto& pick : picks) std::puts(line(pick, station, model).c_str());
    if (!picks.empty()) std::fflush(stdout);
  };
  std::puts(kColumns);
  std::vector<float> frame(components.size()), sorted(components.size());
  std::vector<char> buffer(1 << 16);
  std::size_t have = 0;
  for (ssize_t got = 0; (got = read(STDIN_FILENO, buffer.data() + have, buffer.size() - have)) > 0;) {
    have += static_cast<std::size_t>(got);
    const auto bytes = frame.size() * sizeof(float);
    std::size_t used = 0;
    for (; used + bytes <= have; used += bytes) {
      std::memcpy(frame.data(), buffer.data() + used, bytes);
      for (std::size_t c = 0; c < order.size(); ++c) {
        sorted[c] = frame[order[c]];
        if (!(std::fabs(sorted[c]) <= FLT_MAX / 4)) fail("samples are NaN or too large for float32");
      }
      print(segment.feed(sorted.data()));
    }
    std::memmove(buffer.data(), buffer.data() + used, have - used);
    have -= used;
  }
  print(segment.finish());
  if (have) fail("input ended within a sample: " + std::to_string(have) + " bytes over");
}

}  // namespace

int main(int count, char** arguments) {
  try {
    if (count < 3) fail("usage: picker FOLDER --selftest | --stdin --rate HZ --start TIME");
    const std::string folder = arguments[1];
    std::string what;
    std::string file = "model.onnx", station = "XX.EDGE..HH", components, start;
    double rate = 0;
    for (int k = 2; k < count; ++k) {
      const std::string option = arguments[k];
      if (option == "--selftest" || option == "--stdin") {
        what = option;
        continue;
      }
      if (++k == count) fail(option + " needs a value");
      const std::string value = arguments[k];
      if (option == "--file") file = value;
      else if (option == "--station") station = value;
      else if (option == "--components") components = value;
      else if (option == "--start") start = value;
      else if (option == "--rate") rate = std::stod(value);
      else fail("unknown option " + option);
    }
    Model model(folder, file);
    if (what == "--selftest") {
      selftest(model, folder);
    } else if (what == "--stdin") {
      if (start.empty()) fail("--stdin needs --rate and --start");
      if (!(Rate(rate) == model.rate))
        fail("sampling rate is " + std::to_string(rate) + " Hz; " + model.name + " takes " +
             std::to_string(model.rate.hz) + " Hz only");
      stream(model, components.empty() ? model.components : components, station, parse_time(start));
    } else {
      fail("expected --selftest or --stdin");
    }
  } catch (const std::exception& error) {
    std::cerr << "picker: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
