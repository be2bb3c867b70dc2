#include "rehearsal/forward.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "device.h"

namespace fusionkit_emulator::rehearsal {
namespace {

constexpr int kDigits = 12;  // of a count, so that one is written over another in its place

// The file RECORD/<process id>.forward: a count, a kernel and a line of code in each line, between tabs.
class Forward {
 public:
  void count(const char* kernel, const std::string* line) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (file_ < 0) return;
    const auto [found, is_new] = places_.try_emplace({kernel, line}, Place{end_, 0});
    Place& place = found->second;
    std::string text = std::to_string(++place.count);
    text.insert(0, kDigits - text.size(), ' ');
    if (is_new) text += std::string("\t") + kernel + "\t" + line->substr(0, 400) + "\n";
    if (pwrite(file_, text.data(), text.size(), place.at) < 0) std::perror("rehearsal");
    if (is_new) end_ += static_cast<off_t>(text.size());
  }

 private:
  struct Place {
    off_t at;
    uint64_t count;
  };

  static int opened() {
    const std::string& folder = Settings::get().record;
    if (folder.empty()) return -1;
    return open((folder + "/" + std::to_string(getpid()) + ".forward").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  }

  std::mutex mutex_;
  const int file_ = opened();
  off_t end_ = 0;
  std::map<std::pair<const char*, const std::string*>, Place> places_;
};

}  // namespace

void count_forward(const char* kernel, const Caller& from) {
  static auto* forward = new Forward;  // for as long as any thread runs
  if (from.is_backward || from.is_update || from.makes_state || from.makes_weights) return;
  forward->count(kernel, from.line);
}

}  // namespace fusionkit_emulator::rehearsal
