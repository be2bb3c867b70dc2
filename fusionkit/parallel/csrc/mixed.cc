#include "mixed.h"

namespace fusionkit_parallel {

Mixed::Mixed(std::unique_ptr<SharedMemory> near, std::unique_ptr<Tcp> far, const std::vector<int>& neighbours)
    : Transport(far->rank, far->world_size, far->group),
      near_(std::move(near)),
      far_(std::move(far)),
      place_(world_size, -1) {
  for (size_t i = 0; i < neighbours.size(); ++i) place_[neighbours[i]] = static_cast<int>(i);
  far_->watch(near_->event());
}

size_t Mixed::write(int peer, const char* data, size_t size, bool more) {
  return is_near(peer) ? near_->write(place_[peer], data, size, more) : far_->write(peer, data, size, more);
}

size_t Mixed::read(int peer, char* into, size_t size) {
  return is_near(peer) ? near_->read(place_[peer], into, size) : far_->read(peer, into, size);
}

Bytes Mixed::arrived(int peer, size_t wanted) {
  return is_near(peer) ? near_->arrived(place_[peer], wanted) : far_->arrived(peer, wanted);
}

void Mixed::consumed(int peer, size_t num_bytes) {
  is_near(peer) ? near_->consumed(place_[peer], num_bytes) : far_->consumed(peer, num_bytes);
}

void Mixed::wait(uint32_t seen, int64_t microseconds) {
  near_->before_sleep();  // before the comparison: a peer that writes after it writes the event
  if (changes() == seen) far_->sleep(microseconds);
  near_->after_sleep();
}

std::string Mixed::lost(int peer) { return is_near(peer) ? near_->lost(place_[peer]) : far_->lost(peer); }

void Mixed::fail(const std::string& text) {
  near_->fail(text);
  far_->fail(text);
}

std::string Mixed::failure() {
  const std::string text = near_->failure();
  return text.empty() ? far_->failure() : text;
}

}  // namespace fusionkit_parallel
