#include "rehearsal/caller.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace fusionkit_emulator::rehearsal {
namespace {

// Python's C interface, where the process has an interpreter: the plugin is not linked to one.
struct Python {
  int (*Py_IsInitialized)() = nullptr;
  int (*is_finalizing)() = nullptr;
  int (*PyGILState_Ensure)() = nullptr;
  void (*PyGILState_Release)(int) = nullptr;
  void* (*PyEval_GetFrame)() = nullptr;
  void* (*PyFrame_GetBack)(void*) = nullptr;
  void* (*PyFrame_GetCode)(void*) = nullptr;
  int (*PyFrame_GetLineNumber)(void*) = nullptr;
  void* (*PyObject_GetAttrString)(void*, const char*) = nullptr;
  void* (*PyDict_GetItemString)(void*, const char*) = nullptr;
  const char* (*PyUnicode_AsUTF8)(void*) = nullptr;
  void (*Py_IncRef)(void*) = nullptr;
  void (*Py_DecRef)(void*) = nullptr;
  void (*PyErr_Clear)() = nullptr;
  bool is_there = true;

  static const Python& get() {
    static const Python python;
    return python;
  }

 private:
  Python() {
    find(Py_IsInitialized, "Py_IsInitialized");
    is_finalizing = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "_Py_IsFinalizing"));  // until Python 3.12
    if (is_finalizing == nullptr) find(is_finalizing, "Py_IsFinalizing");
    find(PyGILState_Ensure, "PyGILState_Ensure");
    find(PyGILState_Release, "PyGILState_Release");
    find(PyEval_GetFrame, "PyEval_GetFrame");
    find(PyFrame_GetBack, "PyFrame_GetBack");
    find(PyFrame_GetCode, "PyFrame_GetCode");
    find(PyFrame_GetLineNumber, "PyFrame_GetLineNumber");
    find(PyObject_GetAttrString, "PyObject_GetAttrString");
    find(PyDict_GetItemString, "PyDict_GetItemString");
    find(PyUnicode_AsUTF8, "PyUnicode_AsUTF8");
    find(Py_IncRef, "Py_IncRef");
    find(Py_DecRef, "Py_DecRef");
    find(PyErr_Clear, "PyErr_Clear");
  }

  template <typename Function>
  void find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
    is_there = is_there && function != nullptr;
  }
};

enum class Whose { kUser, kPackage, kOther };

// Of one Python function; found once.
struct Code {
  std::string file, name;
  Whose whose = Whose::kOther;
  Caller marks{nullptr};
};

bool begins(const std::string& text, const char* with) { return text.rfind(with, 0) == 0; }
bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

std::string text_of(const Python& python, void* text) {
  const char* found = text == nullptr ? nullptr : python.PyUnicode_AsUTF8(text);
  python.PyErr_Clear();
  return found == nullptr ? "" : found;
}

std::string attribute(const Python& python, void* of, const char* name) {
  void* value = python.PyObject_GetAttrString(of, name);
  std::string text = text_of(python, value);
  if (value != nullptr) python.Py_DecRef(value);
  return text;
}

std::string module_of(const Python& python, void* frame) {
  void* globals = python.PyObject_GetAttrString(frame, "f_globals");
  if (globals == nullptr) return "";
  std::string name = text_of(python, python.PyDict_GetItemString(globals, "__name__"));
  python.Py_DecRef(globals);
  return name;
}

// A user's code may itself be an installed package, which comes second.
Whose whose(const std::string& file, const std::string& module) {
  const bool is_ours = module == "fusionkit" || begins(module, "fusionkit.") || begins(module, "fusionkit_");
  if (is_ours || begins(file, "<") || module == "paddle" || begins(module, "paddle.")) return Whose::kOther;
  if (!contains(file, "/lib/python3")) return Whose::kUser;
  return contains(file, "/site-packages/") ? Whose::kPackage : Whose::kOther;
}

Code describe(const Python& python, void* frame, void* code) {
  Code made;
  made.file = attribute(python, code, "co_filename");
  made.name = attribute(python, code, "co_name");
  const std::string module = module_of(python, frame);
  made.whose = whose(made.file, module);
  const bool is_paddle = begins(module, "paddle.");
  made.marks.is_backward = is_paddle && made.name == "backward";
  made.marks.is_update = begins(module, "paddle.optimizer.") || begins(module, "fusionkit.optimizer");
  made.marks.makes_state = made.name == "_add_accumulator" || made.name == "_create_master_weight";
  made.marks.makes_weights = is_paddle && (made.name == "create_parameter" || made.name == "initialize" ||
                                           made.name == "set_value" || made.name == "set_state_dict");
  return made;
}

const std::string no_line;
std::mutex mutex;  // for the two below
std::unordered_map<void*, Code> codes;
std::map<std::pair<void*, int>, std::string> lines;

const Code& code_of(const Python& python, void* frame, void* code) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = codes.find(code);
  if (found != codes.end()) return found->second;
  python.Py_IncRef(code);  // its address stays its own
  return codes.emplace(code, describe(python, frame, code)).first->second;
}

const std::string* line_of(const Code& described, void* code, int number) {
  const std::lock_guard<std::mutex> lock(mutex);
  std::string& line = lines[{code, number}];
  if (line.empty()) line = described.file + ":" + std::to_string(number) + " in " + described.name;
  return &line;
}

Caller walk(const Python& python) {
  Caller found{&no_line};
  const std::string* packages = nullptr;
  void* frame = python.PyEval_GetFrame();
  if (frame != nullptr) python.Py_IncRef(frame);
  while (frame != nullptr) {
    void* code = python.PyFrame_GetCode(frame);
    const Code& described = code_of(python, frame, code);
    found.is_backward |= described.marks.is_backward;
    found.is_update |= described.marks.is_update;
    found.makes_state |= described.marks.makes_state;
    found.makes_weights |= described.marks.makes_weights;
    if (found.line == &no_line && described.whose == Whose::kUser)
      found.line = line_of(described, code, python.PyFrame_GetLineNumber(frame));
    else if (packages == nullptr && described.whose == Whose::kPackage)
      packages = line_of(described, code, python.PyFrame_GetLineNumber(frame));
    void* back = python.PyFrame_GetBack(frame);
    python.Py_DecRef(code);
    python.Py_DecRef(frame);
    frame = back;
  }
  if (found.line == &no_line && packages != nullptr) found.line = packages;
  return found;
}

}  // namespace

Caller caller() {
  const Python& python = Python::get();
  if (!python.is_there || !python.Py_IsInitialized() || python.is_finalizing()) return {&no_line};
  const int state = python.PyGILState_Ensure();
  const Caller found = walk(python);
  python.PyGILState_Release(state);
  return found;
}

}  // namespace fusionkit_emulator::rehearsal
