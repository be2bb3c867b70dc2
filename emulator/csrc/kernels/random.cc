// Random numbers, drawn from the device's generator.
#include "kernels/adopted.h"
#include "kernels/registration.h"
#include "paddle/phi/kernels/bernoulli_kernel.h"
#include "paddle/phi/kernels/dropout_grad_kernel.h"
#include "paddle/phi/kernels/dropout_kernel.h"
#include "paddle/phi/kernels/exponential_kernel.h"
#include "paddle/phi/kernels/gaussian_kernel.h"
#include "paddle/phi/kernels/multinomial_kernel.h"
#include "paddle/phi/kernels/poisson_kernel.h"
#include "paddle/phi/kernels/randint_kernel.h"
#include "paddle/phi/kernels/randperm_kernel.h"
#include "paddle/phi/kernels/standard_gamma_kernel.h"
#include "paddle/phi/kernels/truncated_gaussian_random_kernel.h"
#include "paddle/phi/kernels/uniform_inplace_kernel.h"
#include "paddle/phi/kernels/uniform_kernel.h"

namespace fusionkit_emulator::kernels {

void register_random() {
  FUSIONKIT_ADOPT(uniform, UniformKernel, Draws::kRandomNumbers);
  FUSIONKIT_ADOPT(uniform_inplace, UniformInplaceKernel, Draws::kRandomNumbers);
  FUSIONKIT_ADOPT(gaussian, GaussianKernel, Draws::kRandomNumbers);
  FUSIONKIT_ADOPT(gaussian_inplace, GaussianInplaceKernel, Draws::kRandomNumbers);
  FUSIONKIT_ADOPT(truncated_gaussian_random, TruncatedGaussianRandomKernel, Draws::kRandomNumbers);
  FUSIONKIT_ADOPT(randint, RandintKernel, Draws::kRandomNumbers);
  FUSIONKIT_ADOPT(randperm, RandpermKernel, Draws::kRandomNumbers);
  FUSIONKIT_ADOPT(bernoulli, BernoulliKernel, Draws::kRandomNumbers);
  FUSIONKIT_ADOPT(multinomial, MultinomialKernel, Draws::kRandomNumbers);
  FUSIONKIT_ADOPT(dropout, DropoutRawKernel, Draws::kRandomNumbers);
  FUSIONKIT_ADOPT(dropout_grad, DropoutGradRawKernel);
  FUSIONKIT_ADOPT(dropout_nd, DropoutNdKernel, Draws::kRandomNumbers);
  FUSIONKIT_ADOPT(exponential, ExponentialKernel, Draws::kRandomNumbers);
  FUSIONKIT_ADOPT(standard_gamma, StandardGammaKernel, Draws::kRandomNumbers);
  FUSIONKIT_ADOPT(poisson, PoissonKernel, Draws::kRandomNumbers);
}

}  // namespace fusionkit_emulator::kernels
