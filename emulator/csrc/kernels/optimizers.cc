// Optimizers and loss scaling.
#include "kernels/adopted.h"
#include "kernels/registration.h"
#include "paddle/phi/kernels/adagrad_kernel.h"
#include "paddle/phi/kernels/adam_kernel.h"
#include "paddle/phi/kernels/adamax_kernel.h"
#include "paddle/phi/kernels/adamw_kernel.h"
#include "paddle/phi/kernels/amp_kernel.h"
#include "paddle/phi/kernels/average_accumulates_kernel.h"
#include "paddle/phi/kernels/clip_by_norm_kernel.h"
#include "paddle/phi/kernels/lamb_kernel.h"
#include "paddle/phi/kernels/momentum_kernel.h"
#include "paddle/phi/kernels/sgd_kernel.h"

namespace fusionkit_emulator::kernels {

void register_optimizers() {
  FUSIONKIT_ADOPT(adamw, AdamwDenseKernel, {8, 6, 8});
  FUSIONKIT_ADOPT(sgd, SGDDenseKernel, {3, 1, 0});
  FUSIONKIT_ADOPT(momentum, MomentumDenseKernel, {4, 2, 4});
  FUSIONKIT_ADOPT(adam, AdamDenseKernel, {8, 6, 5});
  FUSIONKIT_ADOPT(adamax, AdamaxKernel);
  FUSIONKIT_ADOPT(adagrad, AdagradDenseKernel);
  FUSIONKIT_ADOPT(lamb, LambKernel);
  FUSIONKIT_ADOPT(check_finite_and_unscale, CheckFiniteAndUnscaleKernel);
  FUSIONKIT_ADOPT(update_loss_scaling, UpdateLossScalingKernel);
  FUSIONKIT_ADOPT(clip_by_norm, ClipByNormKernel);
  FUSIONKIT_ADOPT(average_accumulates, AverageAccumulatesKernel);
}

}  // namespace fusionkit_emulator::kernels
