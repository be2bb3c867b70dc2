// The collectives in which this process waits for others, and the last that it has ended.
#pragma once

#include <cstdint>
#include <string>

namespace fusionkit_emulator::rehearsal {

// For as long as it lives the record says that the process is in this call.
class Waiting {
 public:
  explicit Waiting(const std::string& call);
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;
  ~Waiting();

 private:
  const uint64_t number_;
};

}  // namespace fusionkit_emulator::rehearsal
