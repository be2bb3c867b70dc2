#include "error.h"

#include "paddle/common/enforce.h"

namespace fusionkit_emulator {

void invalid_argument(const std::string& text) {
  common::enforce::EnforceNotMet error(common::errors::InvalidArgument("%s", text), __FILE__, __LINE__);
  error.set_error_str(text);
  throw error;
}

}  // namespace fusionkit_emulator
