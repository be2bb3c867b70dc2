#include "control.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace fusionkit_parallel {

void Control::tell(uint32_t kind, const std::string& text) {
  Message message = {};
  message.kind = kind;
  std::strncpy(message.text, text.c_str(), sizeof message.text - 1);
  // A few such messages fit into every send buffer: none is ever cut off.
  send(socket_.fd, &message, sizeof message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void Control::leave() {
  tell(kLeaving, "");
  shutdown(socket_.fd, SHUT_WR);
  // Bytes that nobody has read would make the kernel reset the connection, and the peer lose what was said.
  may_hear = true;
  hear();
}

void Control::hear() {
  if (!may_hear.load() || !end_.empty()) return;
  may_hear = false;  // before reading: what comes meanwhile sets it again
  while (end_.empty()) {
    char* into = reinterpret_cast<char*>(&message_) + received_;
    const ssize_t n = recv(socket_.fd, into, sizeof message_ - received_, MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    if (n <= 0) {
      end_ = n == 0 ? "the connection was closed" : std::strerror(errno);
      return;
    }
    received_ += static_cast<size_t>(n);
    if (received_ < sizeof message_) continue;
    received_ = 0;
    message_.text[sizeof message_.text - 1] = '\0';
    if (message_.kind == kLeaving) has_left_ = true;
    if (message_.kind == kFailed && failure_.empty()) failure_ = message_.text;
  }
}

}  // namespace fusionkit_parallel
