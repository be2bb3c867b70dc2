// Where in the Python program a call of the device comes from.
#pragma once

#include <string>

namespace fusionkit_emulator::rehearsal {

// What the Python functions on the stack say of a call.
struct Caller {
  const std::string* line;     // "file:12 in function" of the user's code; lives for ever, empty without Python
  bool is_backward = false;    // in a backward pass
  bool is_update = false;      // in an optimizer
  bool makes_state = false;    // of that optimizer
  bool makes_weights = false;  // first values of a parameter
};

// The innermost line that is neither Paddle's, fusionkit's nor the standard library's. Takes the interpreter's lock.
Caller caller();

}  // namespace fusionkit_emulator::rehearsal
