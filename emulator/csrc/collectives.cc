#include "collectives.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "device.h"
#include "fusionkit/parallel/csrc/communicator.h"
#include "fusionkit/parallel/csrc/rendezvous.h"
#include "rehearsal/caller.h"
#include "rehearsal/calls.h"
#include "rehearsal/trace.h"
#include "status.h"
#include "stream.h"
#include "turns.h"

namespace fusionkit_emulator {
namespace {

using fusionkit_parallel::Call;
using fusionkit_parallel::Communicator;
using fusionkit_parallel::DType;
using fusionkit_parallel::Exchange;
using fusionkit_parallel::Op;
using fusionkit_parallel::ReduceOp;
using fusionkit_parallel::UniqueId;

// What Paddle's C_CCLComm points to. Work on a stream may outlive it.
struct Group {
  std::shared_ptr<Communicator> communicator;
  std::shared_ptr<Turns> turns = std::make_shared<Turns>();
  std::shared_ptr<rehearsal::CallHistory> history = std::make_shared<rehearsal::CallHistory>();
};

// A call that the host has made, with everything that it reads.
struct Pending {
  Call call;
  std::vector<Exchange> exchanges;
  Group group;
  Stream* stream;
  rehearsal::RehearsedCall rehearsed;  // in a rehearsal
};

// The communicators that are open, by name: a vendor's op names the one it uses.
struct Names {
  std::mutex mutex;
  std::map<std::string, Group*> groups;

  static Names& get() {
    static auto* names = new Names;  // for as long as any thread runs
    return *names;
  }
};

thread_local int group_depth = 0;
thread_local std::vector<Pending> grouped;

DType dtype_of(C_DataType dtype) {
  if (dtype == UNDEFINED) throw std::invalid_argument("collectives: dtype must be a type with elements, got UNDEFINED");
  return static_cast<DType>(dtype - 1);
}

// `waiting` runs what comes after this only when `other` has run what was given to it so far.
void let_wait(Stream& waiting, Stream& other) {
  const auto event = std::make_shared<Event>();
  event->record(other);
  event->wait(waiting);
}

void run(std::vector<Pending>& calls) {
  std::vector<Call> ready;
  for (Pending& each : calls) {
    if (!each.exchanges.empty()) each.call.exchanges = each.exchanges.data();
    ready.push_back(each.call);
  }
  Communicator::run(ready.data(), ready.size());
}

void rehearse(std::vector<Pending>& calls) {
  std::vector<rehearsal::RehearsedCall> ready;
  for (Pending& each : calls) {
    if (!each.exchanges.empty()) each.rehearsed.call.exchanges = each.exchanges.data();
    ready.push_back(each.rehearsed);
  }
  rehearsal::run(ready);
}

// For the trace; those after the first are one batch with it.
void note(const std::vector<Pending>& calls) {
  rehearsal::Trace* trace = rehearsal::Trace::get();
  if (trace == nullptr) return;
  for (const Pending& each : calls) {
    Call call = each.call;
    call.exchanges = each.exchanges.data();
    trace->call(call, each.rehearsed.line, each.stream, &each != &calls.front());
  }
}

void run_on_stream(std::vector<Pending> calls) {
  note(calls);
  Stream& stream = *calls.front().stream;
  std::set<Stream*> others;
  for (const Pending& each : calls)
    if (each.stream != &stream) others.insert(each.stream);
  for (Stream* other : others) let_wait(stream, *other);

  std::set<Turns*> seen;
  std::vector<std::shared_ptr<Turn>> turns;
  for (const Pending& each : calls)
    if (seen.insert(each.group.turns.get()).second) turns.push_back(std::make_shared<Turn>(each.group.turns));
  const auto shared = std::make_shared<std::vector<Pending>>(std::move(calls));
  stream.enqueue([shared, turns] {
    for (const auto& turn : turns) turn->wait();
    try {
      Settings::get().rehearsing ? rehearse(*shared) : run(*shared);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "emulated %s: %s\n", Settings::get().device_type.c_str(),
                   error.what());  // Paddle's own error names only a status
      throw;
    }
  });
  for (Stream* other : others) let_wait(*other, stream);
}

void submit(Call call, C_CCLComm comm, C_Stream stream, std::vector<Exchange> exchanges = {}) {
  const Group& group = *reinterpret_cast<Group*>(comm);
  const void* address = call.send != nullptr ? call.send : call.recv;
  Device* owner = device_of(address);
  call.communicator = group.communicator.get();
  rehearsal::RehearsedCall rehearsed{call, nullptr, nullptr, false};
  if (Settings::get().rehearsing) rehearsed = rehearsal::prepare(call, group.history);
  call.send = storage_of(call.send);
  call.recv = storage_of(call.recv);
  Stream& chosen = (owner == nullptr ? device(0) : *owner).stream_or_default(stream);
  grouped.push_back({call, std::move(exchanges), group, &chosen, rehearsed});
  if (group_depth == 0) run_on_stream(std::exchange(grouped, {}));
}

C_Status get_comm_name(C_CCLComm comm, char* name) {
  return guarded([&] { std::strcpy(name, reinterpret_cast<Group*>(comm)->communicator->name().c_str()); });
}

C_Status get_unique_id_size(size_t* size) {
  *size = sizeof(UniqueId);
  return C_SUCCESS;
}

C_Status get_unique_id(C_CCLRootId* id) {
  return guarded([&] {
    const UniqueId made = UniqueId::create();
    std::memcpy(id->data, &made, std::min(id->sz, sizeof made));
  });
}

C_Status init_rank(size_t ranks, C_CCLRootId* id, size_t rank, C_CCLComm* comm) {
  return guarded([&] {
    UniqueId own;
    std::memcpy(&own, id->data, sizeof own);
    auto transport =
        fusionkit_parallel::join(own, static_cast<int>(rank), static_cast<int>(ranks), Settings::get().timeout);
    auto made = std::make_unique<Group>();
    // As a vendor's send does, and may do at any size: who sends before the peer receives waits.
    made->communicator =
        std::make_shared<Communicator>(std::move(transport), Settings::get().timeout, /*sends_wait=*/true);
    const std::lock_guard lock(Names::get().mutex);
    Names::get().groups[made->communicator->name()] = made.get();
    *comm = reinterpret_cast<C_CCLComm>(made.release());
  });
}

C_Status destroy(C_CCLComm comm) {
  auto* group = reinterpret_cast<Group*>(comm);
  {
    const std::lock_guard lock(Names::get().mutex);
    Names::get().groups.erase(group->communicator->name());
  }
  delete group;
  return C_SUCCESS;
}

C_Status all_reduce(void* send, void* recv, size_t count, C_DataType dtype, C_CCLReduceOp op, C_CCLComm comm,
                    C_Stream stream) {
  return guarded([&] {
    submit({nullptr, Op::kAllReduce, dtype_of(dtype), static_cast<ReduceOp>(op), 0, send, recv, count, nullptr}, comm,
           stream);
  });
}

C_Status broadcast(void* data, size_t count, C_DataType dtype, size_t root, C_CCLComm comm, C_Stream stream) {
  return guarded([&] {
    const auto from = static_cast<int32_t>(root);
    submit({nullptr, Op::kBroadcast, dtype_of(dtype), ReduceOp::kSum, from, data, data, count, nullptr}, comm, stream);
  });
}

C_Status reduce(void* send, void* recv, size_t count, C_DataType dtype, C_CCLReduceOp op, size_t root, C_CCLComm comm,
                C_Stream stream) {
  return guarded([&] {
    const auto to = static_cast<int32_t>(root);
    submit({nullptr, Op::kReduce, dtype_of(dtype), static_cast<ReduceOp>(op), to, send, recv, count, nullptr}, comm,
           stream);
  });
}

C_Status all_gather(void* send, void* recv, size_t count, C_DataType dtype, C_CCLComm comm, C_Stream stream) {
  return guarded([&] {
    submit({nullptr, Op::kAllGather, dtype_of(dtype), ReduceOp::kSum, 0, send, recv, count, nullptr}, comm, stream);
  });
}

C_Status reduce_scatter(void* send, void* recv, size_t count, C_DataType dtype, C_CCLReduceOp op, C_CCLComm comm,
                        C_Stream stream) {
  return guarded([&] {
    submit({nullptr, Op::kReduceScatter, dtype_of(dtype), static_cast<ReduceOp>(op), 0, send, recv, count, nullptr},
           comm, stream);
  });
}

C_Status group_start() {
  ++group_depth;
  return C_SUCCESS;
}

C_Status group_end() {
  return guarded([&] {
    if (group_depth == 0) throw std::logic_error("xccl_group_end: a group must have been started, got none");
    if (--group_depth == 0 && !grouped.empty()) run_on_stream(std::exchange(grouped, {}));
  });
}

C_Status send(void* data, size_t count, C_DataType dtype, size_t rank, C_CCLComm comm, C_Stream stream) {
  return guarded([&] {
    const auto to = static_cast<int32_t>(rank);
    submit({nullptr, Op::kSend, dtype_of(dtype), ReduceOp::kSum, to, data, nullptr, count, nullptr}, comm, stream);
  });
}

C_Status recv(void* data, size_t count, C_DataType dtype, size_t rank, C_CCLComm comm, C_Stream stream) {
  return guarded([&] {
    const auto from = static_cast<int32_t>(rank);
    submit({nullptr, Op::kRecv, dtype_of(dtype), ReduceOp::kSum, from, nullptr, data, count, nullptr}, comm, stream);
  });
}

C_Status all_to_all(const void** send, const size_t* send_count, const C_DataType* send_dtype, void** recv,
                    const size_t* recv_count, const C_DataType* recv_dtype, size_t, size_t num_ranks, C_CCLComm comm,
                    C_Stream stream) {
  return guarded([&] {
    std::vector<Exchange> exchanges;
    for (size_t rank = 0; rank < num_ranks; ++rank)
      exchanges.push_back({storage_of(send[rank]), send_count[rank], storage_of(recv[rank]), recv_count[rank],
                           dtype_of(send_dtype[rank]), dtype_of(recv_dtype[rank])});
    submit({nullptr, Op::kAllToAll, DType::kUint8, ReduceOp::kSum, 0, send[0], nullptr, 0, nullptr}, comm, stream,
           std::move(exchanges));
  });
}

}  // namespace

void ReservedCall::run(Call call) const {
  turn->wait();
  call.communicator = communicator.get();
  if (!Settings::get().rehearsing) return Communicator::run(&call, 1);
  std::vector<rehearsal::RehearsedCall> made{{call, history, line, false}};
  rehearsal::run(made);
}

ReservedCall reserve_call(const std::string& name) {
  const std::lock_guard lock(Names::get().mutex);
  const auto found = Names::get().groups.find(name);
  if (found == Names::get().groups.end())
    throw std::invalid_argument("the name of a communicator, as group.process_group.get_comm_name(rank) gives it");
  const Group& group = *found->second;
  const std::string* line = Settings::get().rehearsing ? rehearsal::caller().line : nullptr;
  if (rehearsal::Trace* trace = rehearsal::Trace::get()) trace->reserved_call(*group.communicator, line);
  return {group.communicator, std::make_shared<Turn>(group.turns), group.history, line};
}

void fill_collectives(C_DeviceInterface* interface) {
  interface->xccl_get_comm_name = get_comm_name;
  interface->xccl_get_unique_id_size = get_unique_id_size;
  interface->xccl_get_unique_id = get_unique_id;
  interface->xccl_comm_init_rank = init_rank;
  interface->xccl_destroy_comm = destroy;
  interface->xccl_all_reduce = all_reduce;
  interface->xccl_broadcast = broadcast;
  interface->xccl_reduce = reduce;
  interface->xccl_all_gather = all_gather;
  interface->xccl_reduce_scatter = reduce_scatter;
  interface->xccl_group_start = group_start;
  interface->xccl_group_end = group_end;
  interface->xccl_send = send;
  interface->xccl_recv = recv;
  interface->xccl_all_to_all = all_to_all;
}

}  // namespace fusionkit_emulator
