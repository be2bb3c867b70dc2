#include "rehearsal/calls.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <utility>

#include "device.h"
#include "paddle/phi/common/data_type.h"
#include "rehearsal/accounts.h"
#include "rehearsal/caller.h"
#include "rehearsal/findings.h"
#include "rehearsal/record.h"
#include "rehearsal/stand_in.h"
#include "rehearsal/waiting.h"

namespace fusionkit_emulator::rehearsal {
namespace {

using fusionkit_parallel::Call;
using fusionkit_parallel::Communicator;
using fusionkit_parallel::DType;
using fusionkit_parallel::Exchange;
using fusionkit_parallel::Op;
using fusionkit_parallel::Plan;

constexpr int kMostPairs = 16;  // of an all_to_all, whose sizes are compared

// What a rank tells of its call.
struct Descriptor {
  Op op;
  DType dtype;
  fusionkit_parallel::ReduceOp reduce;
  int32_t root;
  uint64_t count;
  int32_t process;
  int32_t num_pairs;
  uint64_t sent[kMostPairs], received[kMostPairs];  // bytes, by rank
  char line[224];
};

bool is_pair(Op op) { return op == Op::kSend || op == Op::kRecv; }

phi::DataType paddle_dtype(DType dtype) {
  using T = phi::DataType;
  constexpr T types[fusionkit_parallel::kNumDTypes] = {
      T::BOOL,  T::UINT8,   T::UINT16,  T::UINT32,  T::UINT64,   T::INT8,      T::INT16,     T::INT32,
      T::INT64, T::FLOAT16, T::FLOAT32, T::FLOAT64, T::BFLOAT16, T::COMPLEX64, T::COMPLEX128};
  return types[static_cast<int>(dtype)];
}

// Bytes at `send` and at `recv`.
std::pair<size_t, size_t> sizes_of(const Call& call) {
  const size_t own = call.count * fusionkit_parallel::size_of(call.dtype), all = own * call.communicator->world_size();
  if (call.op == Op::kAllGather) return {own, all};
  if (call.op == Op::kReduceScatter) return {all, own};
  return {own, own};
}

// Of pairs too: whatever both sides decide alike follows from what they have told each other.
bool is_small(const Call& call) {
  const auto [sent, received] = sizes_of(call);
  return call.op != Op::kAllToAll && std::max(sent, received) <= kSmall;
}

Descriptor descriptor_of(const RehearsedCall& made) {
  const Call& call = made.call;
  Descriptor told = {call.op, call.dtype, call.reduce, call.root, call.count, process_rank(), 0, {}, {}, {}};
  if (call.op == Op::kAllToAll) {
    told.num_pairs = std::min(call.communicator->world_size(), kMostPairs);
    for (int rank = 0; rank < told.num_pairs; ++rank) {
      const Exchange& pair = call.exchanges[rank];
      told.sent[rank] = pair.send_count * fusionkit_parallel::size_of(pair.send_dtype);
      told.received[rank] = pair.recv_count * fusionkit_parallel::size_of(pair.recv_dtype);
    }
  }
  // The end of a long path says more than its beginning.
  const size_t skipped = made.line->size() < sizeof told.line ? 0 : made.line->size() - sizeof told.line + 1;
  std::strncpy(told.line, made.line->c_str() + skipped, sizeof told.line - 1);
  return told;
}

std::string what(const Descriptor& told, uint64_t number) {
  Plan plan = {};
  plan.op = told.op;
  plan.dtype = told.dtype;
  plan.reduce = told.reduce;
  plan.root = told.root;
  plan.count = told.count;
  plan.sequence = number;
  const std::string text = plan.describe();
  if (!is_pair(told.op)) return text;
  const std::string to = told.op == Op::kRecv ? " from rank " + std::to_string(told.root) : "";
  return text.substr(0, text.rfind(" as call ")) + to;
}

// The communicator's text, without the call that brings the descriptors.
std::string without_own_call(const std::string& error) {
  const size_t begin = error.find(": "), end = error.find("; ");
  return begin == std::string::npos || end == std::string::npos ? error : error.substr(begin + 2, end - begin - 2);
}

std::string at(const char* line) {
  return *line == '\0' ? std::string(" by no Python code") : std::string(" at ") + line;
}

bool same_call(const Descriptor& one, const Descriptor& other) {
  return one.op == other.op && one.dtype == other.dtype && one.reduce == other.reduce && one.root == other.root &&
         one.count == other.count;
}

std::string listed(const std::vector<int>& processes) {
  std::string made = processes.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < processes.size(); ++i) made += (i == 0 ? "" : ", ") + std::to_string(processes[i]);
  return made;
}

// A line of text for all ranks that say the same.
template <typename Say>
std::string each_says(const std::vector<Descriptor>& all, Say say) {
  std::map<std::string, std::vector<int>> said;
  for (const Descriptor& one : all) said[say(one)].push_back(one.process);
  std::string made;
  for (const auto& [text, processes] : said) made += "\n  " + listed(processes) + ": " + text;
  return made;
}

bool pairs_fit(const std::vector<Descriptor>& all) {
  const int count = std::min<int>(all.size(), kMostPairs);
  for (int one = 0; one < count; ++one)
    for (int other = 0; other < count; ++other)
      if (all[one].sent[other] != all[other].received[one]) return false;
  return true;
}

void compare(CallHistory& history, const std::vector<Descriptor>& all) {
  const uint64_t number = history.num_calls;
  const auto differs = [&](const Descriptor& one) { return !same_call(one, all[0]); };
  if (std::any_of(all.begin(), all.end(), differs) || !pairs_fit(all))
    throw std::runtime_error("ranks that must make one call make different ones" +
                             each_says(all, [&](auto& one) { return what(one, number) + at(one.line); }) +
                             history.difference);
  const auto elsewhere = [&](const Descriptor& one) { return std::strcmp(one.line, all[0].line) != 0; };
  if (std::none_of(all.begin(), all.end(), elsewhere)) {
    history.difference.clear();
  } else if (history.difference.empty()) {
    history.difference = "\nSince this call they come from different lines, so one may have left out or added a call" +
                         each_says(all, [&](auto& one) { return what(one, number) + at(one.line); });
  }
}

// What arrives of others' descriptors, and the calls that bring it.
struct Talk {
  std::vector<Descriptor> own;
  std::vector<std::vector<Descriptor>> heard;
  std::vector<Call> calls;

  explicit Talk(const std::vector<RehearsedCall>& made) : heard(made.size()) {
    for (const RehearsedCall& one : made) own.push_back(descriptor_of(one));
    for (size_t i = 0; i < made.size(); ++i) calls.push_back(call_of(made[i].call, i));
  }

 private:
  Call call_of(const Call& call, size_t i) {
    const Op op = is_pair(call.op) ? call.op : Op::kAllGather;
    heard[i].resize(op == Op::kAllGather ? call.communicator->world_size() : 1);
    return {call.communicator,
            op,
            DType::kUint8,
            fusionkit_parallel::ReduceOp::kSum,
            is_pair(op) ? call.root : 0,
            op == Op::kRecv ? nullptr : &own[i],
            op == Op::kSend ? nullptr : heard[i].data(),
            sizeof(Descriptor),
            nullptr};
  }
};

void compare(const std::vector<RehearsedCall>& made, const Talk& talk) {
  for (size_t i = 0; i < made.size(); ++i) {
    CallHistory& history = *made[i].history;
    if (!is_pair(made[i].call.op)) {
      history.processes.clear();
      for (const Descriptor& one : talk.heard[i]) history.processes.push_back(one.process);
      compare(history, talk.heard[i]);
    } else if (made[i].call.op == Op::kRecv) {
      const Descriptor &sent = talk.heard[i][0], &own = talk.own[i];
      if (sent.count != own.count || sent.dtype != own.dtype)
        throw std::runtime_error("what is sent is not what is received" + each_says({sent, own}, [](auto& one) {
                                   return std::string(name_of(one.op)) + " of " + std::to_string(one.count) + " " +
                                          fusionkit_parallel::name_of(one.dtype) + at(one.line);
                                 }));
    }
  }
}

void move_small(std::vector<RehearsedCall>& made) {
  std::vector<std::vector<char>> stand_ins;
  std::vector<Call> calls;
  for (const RehearsedCall& one : made) {
    const bool has_values = one.call.send != nullptr || one.call.recv != nullptr;
    if (!has_values || !is_small(one.call)) continue;
    Call call = one.call;
    call.recv = storage_of(call.recv);
    if (one.is_known || call.send == nullptr) {
      call.send = storage_of(call.send);
    } else {
      stand_ins.emplace_back(sizes_of(call).first);
      stand_in(stand_ins.back().data(), paddle_dtype(call.dtype), stand_ins.back().size(), "");
      call.send = stand_ins.back().data();
    }
    calls.push_back(call);
  }
  if (!calls.empty()) Communicator::run(calls.data(), calls.size());
}

std::string members(const CallHistory& history) {
  return history.processes.empty() ? "" : " among " + listed(history.processes);
}

std::string described(const std::vector<RehearsedCall>& made, const Talk& talk) {
  std::string text;
  for (size_t i = 0; i < made.size(); ++i)
    text += (i == 0 ? "" : "; ") + what(talk.own[i], made[i].history->num_calls) + members(*made[i].history) +
            at(talk.own[i].line);
  return text;
}

}  // namespace

RehearsedCall prepare(const Call& call, std::shared_ptr<CallHistory> history) {
  const auto [sent, received] = sizes_of(call);
  const bool is_known = call.send == nullptr || rehearsal::is_known(call.send, sent);
  Device* written = call.recv == nullptr ? nullptr : device_of(call.recv);
  if (written != nullptr)
    written->memory.name(call.recv, received, name_of(call.op), static_cast<int>(paddle_dtype(call.dtype)));
  const Caller from = caller();
  // A stage of a pipeline may begin its step with a message.
  Device* owner = device_of(call.send != nullptr ? call.send : call.recv);
  if (is_pair(call.op) && !from.is_update && owner != nullptr) accounts(owner->id).leave_update();
  return {call, std::move(history), from.line, is_known};
}

void run(std::vector<RehearsedCall>& made) {
  for (const RehearsedCall& one : made)
    if (!is_pair(one.call.op)) ++one.history->num_calls;
  Talk talk(made);
  const std::string text = described(made, talk);
  try {
    const Waiting waiting(text);
    Communicator::run(talk.calls.data(), talk.calls.size());
    compare(made, talk);
    move_small(made);
  } catch (const std::exception& error) {
    std::string difference;
    for (const RehearsedCall& one : made) difference += one.history->difference;
    const bool is_told = std::strstr(error.what(), "\n") != nullptr;
    const std::string told =
        is_told ? error.what() : without_own_call(error.what()) + "\n  this rank: " + text + difference;
    note_failed_call(told);
    throw std::runtime_error(told);
  }
}

}  // namespace fusionkit_emulator::rehearsal
