#include "rehearsal/record.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "device.h"

namespace fusionkit_emulator::rehearsal {
namespace {

constexpr std::array<size_t, 6> kWidths = {512, 8192, 8192, 16384, 16384, 1024};  // of the slots, with their newlines

constexpr size_t begin_of(size_t slot) {
  size_t at = 0;
  for (size_t i = 0; i < slot; ++i) at += kWidths[i];
  return at;
}

}  // namespace

Record::Record() {
  const std::string& folder = Settings::get().record;
  if (folder.empty()) return;
  const std::string path = folder + "/" + std::to_string(getpid()) + ".jsonl";
  const int file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0644);
  constexpr size_t size = begin_of(kWidths.size());
  if (file < 0 || ftruncate(file, size) != 0) {
    std::perror(path.c_str());
    return;
  }
  void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped == MAP_FAILED) {
    std::perror(path.c_str());
    return;
  }
  mapped_ = static_cast<char*>(mapped);
  for (size_t i = 0; i < kWidths.size(); ++i) set(static_cast<Slot>(i), "{}");
}

Record& Record::get() {
  static auto* record = new Record;  // for as long as any thread runs
  return *record;
}

void Record::set(Slot slot, const std::string& json) {
  if (mapped_ == nullptr) return;
  const auto number = static_cast<size_t>(slot);
  const std::string& text = json.size() < kWidths[number] ? json : "{}";
  const std::lock_guard<std::mutex> lock(mutex_);
  char* at = mapped_ + begin_of(number);
  std::memset(at, ' ', kWidths[number] - 1);
  at[kWidths[number] - 1] = '\n';
  std::memcpy(at, text.data(), text.size());
}

std::string quoted(const std::string& text) {
  std::string made = "\"";
  for (const char each : text) {
    if (each == '"' || each == '\\')
      made += std::string("\\") + each;
    else if (static_cast<unsigned char>(each) < 0x20)
      made += each == '\n' ? "\\n" : " ";
    else
      made += each;
  }
  return made + "\"";
}

int process_rank() {
  static const int rank = [] {
    const char* given = std::getenv("PADDLE_TRAINER_ID");
    return given == nullptr ? 0 : std::atoi(given);
  }();
  return rank;
}

}  // namespace fusionkit_emulator::rehearsal
