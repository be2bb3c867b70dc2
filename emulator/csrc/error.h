// Errors that reach Python as exceptions.
#pragma once

#include <string>

namespace fusionkit_emulator {

// Python gets a ValueError with this text. (A standard exception that leaves a kernel ends the process.)
[[noreturn]] void invalid_argument(const std::string& text);

}  // namespace fusionkit_emulator
