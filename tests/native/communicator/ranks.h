// Ranks as threads of this program, joined by the communicator's own means.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fusionkit/parallel/csrc/communicator.h"
#include "fusionkit/parallel/csrc/hosts.h"

namespace communicator_tests {

using namespace fusionkit_parallel;

enum class Way { kMemory, kTcp, kMixed };  // mixed: two ranks a host
std::string name_of(Way way);

// What the ranks of a group must know before they join.
class Meeting {
 public:
  Meeting(Way way, int world_size);

  std::unique_ptr<Transport> transport(int rank, double timeout = 20) const;
  std::unique_ptr<Communicator> join(int rank, double timeout = 20) const;
  int port(int rank) const { return members_[rank].port; }

  const int world_size;

 private:
  Way way_;
  GroupKey key_ = GroupKey::create();
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::vector<Member> members_;
};

// Runs work(rank) on a thread for each rank, and says what each threw, or "".
std::vector<std::string> run_ranks(int world_size, const std::function<void(int)>& work);
// The same with a communicator, left at the end of work. Whatever is thrown is a wrong result.
void run_group(Way way, int world_size, const std::function<void(Communicator&)>& work);

void check(bool passed, const std::string& what);
struct Counts {
  long checks, wrong;
};
Counts counts();

}  // namespace communicator_tests
