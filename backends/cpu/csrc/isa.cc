#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/table.h"
#include "tiles.h"

namespace fusionkit_cpu {
namespace {

struct Target {
  const char *name, *model_name;
  bool (*runs_here)();
  bool (*model_runs_here)();
  bool is_built;
};

// In the order of Isa, the best first.
#define FUSIONKIT_TARGET(name, runs_here, model_runs_here, is_built) \
  {#name, #name "_model", [] { return bool(runs_here); }, [] { return bool(model_runs_here); }, is_built},
constexpr Target kTargets[] = {FUSIONKIT_EACH_TARGET(FUSIONKIT_TARGET)};
constexpr int kNumTargets = sizeof kTargets / sizeof *kTargets;

// A target, or the model of one.
struct Choice {
  int target;
  bool is_model;
  const char* name() const { return is_model ? kTargets[target].model_name : kTargets[target].name; }
  bool runs_here() const { return is_model ? kTargets[target].model_runs_here() : kTargets[target].runs_here(); }
};

// The best first, then models.
std::vector<Choice> choices_that_run_here() {
  std::vector<Choice> choices;
  for (bool is_model : {false, true})
    for (int target = 0; target < kNumTargets; ++target)
      if (const Choice choice = {target, is_model}; choice.runs_here()) choices.push_back(choice);
  return choices;
}

// `source` is who asks: a function or the environment variable.
Choice parse(const std::string& name, const std::string& source) {
  std::string list, refused;
  bool missing = false;
  for (const Choice& choice : choices_that_run_here()) {
    const bool is_built = kTargets[choice.target].is_built;
    if (name == choice.name() && is_built) return choice;
    if (name == choice.name()) missing = true;
    if (is_built && !choice.is_model) list += (list.empty() ? "" : ", ") + std::string(choice.name());
  }
  for (const Target& target : kTargets)
    if (name == target.name && !missing && !why_tiles_are_refused().empty()) refused = ". " + why_tiles_are_refused();
  const std::string why = missing ? "what `make demo` has built" : "what this processor has";
  throw std::invalid_argument(source + " must be one of " + list + " (" + why + "), got \"" + name + "\"" +
                              (missing ? ". Run: make build" : refused));
}

Choice initial_choice() {
  const char* name = std::getenv("FUSIONKIT_CPU_ISA");
  if (name != nullptr && *name != '\0') return parse(name, "isa: FUSIONKIT_CPU_ISA");
  for (const Choice& choice : choices_that_run_here())
    if (kTargets[choice.target].is_built && !choice.is_model) return choice;
  throw std::invalid_argument(
      "isa: the kernels must be built for this processor, which another one built. Run: make build");
}

std::atomic<int> chosen{-1};  // -1: not asked for yet

void choose(const Choice& choice) {
  model_tiles(choice.is_model);
  chosen.store(choice.target, std::memory_order_relaxed);
}

std::vector<std::string> names(bool with_models) {
  std::vector<std::string> names;
  for (const Choice& choice : choices_that_run_here())
    if (kTargets[choice.target].is_built && (with_models || !choice.is_model)) names.push_back(choice.name());
  return names;
}

}  // namespace

Isa current_isa() {
  int isa = chosen.load(std::memory_order_relaxed);
  if (isa < 0) {
    const Choice choice = initial_choice();
    choose(choice);
    isa = choice.target;
  }
  return static_cast<Isa>(isa);
}

const char* isa() { return Choice{static_cast<int>(current_isa()), tiles_are_modelled()}.name(); }

std::vector<std::string> available_isas() { return names(false); }

std::vector<std::string> tested_isas() { return names(true); }

std::string refused_isas() {
  choices_that_run_here();  // asks for permission
  return why_tiles_are_refused();
}

void set_isa(const std::string& name) { choose(parse(name, "set_isa: name")); }

}  // namespace fusionkit_cpu
