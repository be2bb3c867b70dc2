// Products, losses and layers.
#include "kernels/adopted.h"
#include "kernels/registration.h"
#include "paddle/phi/kernels/addmm_grad_kernel.h"
#include "paddle/phi/kernels/addmm_kernel.h"
#include "paddle/phi/kernels/baddbmm_kernel.h"
#include "paddle/phi/kernels/bce_loss_grad_kernel.h"
#include "paddle/phi/kernels/bce_loss_kernel.h"
#include "paddle/phi/kernels/bmm_grad_kernel.h"
#include "paddle/phi/kernels/bmm_kernel.h"
#include "paddle/phi/kernels/cross_entropy_grad_kernel.h"
#include "paddle/phi/kernels/cross_entropy_kernel.h"
#include "paddle/phi/kernels/einsum_grad_kernel.h"
#include "paddle/phi/kernels/einsum_kernel.h"
#include "paddle/phi/kernels/embedding_grad_kernel.h"
#include "paddle/phi/kernels/embedding_kernel.h"
#include "paddle/phi/kernels/group_norm_grad_kernel.h"
#include "paddle/phi/kernels/group_norm_kernel.h"
#include "paddle/phi/kernels/huber_loss_grad_kernel.h"
#include "paddle/phi/kernels/huber_loss_kernel.h"
#include "paddle/phi/kernels/kldiv_loss_grad_kernel.h"
#include "paddle/phi/kernels/kldiv_loss_kernel.h"
#include "paddle/phi/kernels/label_smooth_grad_kernel.h"
#include "paddle/phi/kernels/label_smooth_kernel.h"
#include "paddle/phi/kernels/layer_norm_grad_kernel.h"
#include "paddle/phi/kernels/layer_norm_kernel.h"
#include "paddle/phi/kernels/log_softmax_grad_kernel.h"
#include "paddle/phi/kernels/log_softmax_kernel.h"
#include "paddle/phi/kernels/matmul_grad_kernel.h"
#include "paddle/phi/kernels/matmul_kernel.h"
#include "paddle/phi/kernels/mv_grad_kernel.h"
#include "paddle/phi/kernels/mv_kernel.h"
#include "paddle/phi/kernels/nll_loss_grad_kernel.h"
#include "paddle/phi/kernels/nll_loss_kernel.h"
#include "paddle/phi/kernels/sigmoid_cross_entropy_with_logits_grad_kernel.h"
#include "paddle/phi/kernels/sigmoid_cross_entropy_with_logits_kernel.h"
#include "paddle/phi/kernels/softmax_grad_kernel.h"
#include "paddle/phi/kernels/softmax_kernel.h"
#include "paddle/phi/kernels/swiglu_grad_kernel.h"
#include "paddle/phi/kernels/swiglu_kernel.h"

namespace fusionkit_emulator::kernels {

void register_layers() {
  FUSIONKIT_ADOPT(matmul, MatmulKernel);
  FUSIONKIT_ADOPT(matmul_grad, MatmulGradKernel);
  FUSIONKIT_ADOPT(matmul_with_flatten, MatmulWithFlattenKernel);
  FUSIONKIT_ADOPT(matmul_with_flatten_grad, MatmulWithFlattenGradKernel);
  FUSIONKIT_ADOPT(bmm, BmmKernel);
  FUSIONKIT_ADOPT(bmm_grad, BmmGradKernel);
  FUSIONKIT_ADOPT(mv, MvKernel);
  FUSIONKIT_ADOPT(mv_grad, MvGradKernel);
  FUSIONKIT_ADOPT(addmm, AddmmKernel);
  FUSIONKIT_ADOPT(addmm_grad, AddmmGradKernel);
  FUSIONKIT_ADOPT(baddbmm, BaddbmmKernel);
  FUSIONKIT_ADOPT(softmax, SoftmaxKernel);
  FUSIONKIT_ADOPT(softmax_grad, SoftmaxGradKernel);
  FUSIONKIT_ADOPT(log_softmax, LogSoftmaxKernel);
  FUSIONKIT_ADOPT(log_softmax_grad, LogSoftmaxGradKernel);
  FUSIONKIT_ADOPT(cross_entropy_with_softmax, CrossEntropyWithSoftmaxKernel);
  FUSIONKIT_ADOPT(cross_entropy_with_softmax_grad, CrossEntropyWithSoftmaxGradKernel);
  FUSIONKIT_ADOPT(nll_loss, NllLossRawKernel);
  FUSIONKIT_ADOPT(nll_loss_grad, NllLossGradKernel);
  FUSIONKIT_ADOPT(bce_loss, BCELossKernel);
  FUSIONKIT_ADOPT(bce_loss_grad, BCELossGradKernel);
  FUSIONKIT_ADOPT(sigmoid_cross_entropy_with_logits, SigmoidCrossEntropyWithLogitsKernel);
  FUSIONKIT_ADOPT(sigmoid_cross_entropy_with_logits_grad, SigmoidCrossEntropyWithLogitsGradKernel);
  FUSIONKIT_ADOPT(huber_loss, HuberLossKernel);
  FUSIONKIT_ADOPT(huber_loss_grad, HuberLossGradKernel);
  FUSIONKIT_ADOPT(kldiv_loss, KLDivLossKernel);
  FUSIONKIT_ADOPT(kldiv_loss_grad, KLDivLossGradKernel);
  FUSIONKIT_ADOPT(label_smooth, LabelSmoothKernel);
  FUSIONKIT_ADOPT(label_smooth_grad, LabelSmoothGradKernel);
  FUSIONKIT_ADOPT(embedding, EmbeddingKernel);
  FUSIONKIT_ADOPT(embedding_grad, EmbeddingGradKernel);
  FUSIONKIT_ADOPT(layer_norm, LayerNormKernel);
  FUSIONKIT_ADOPT(layer_norm_grad, LayerNormGradKernel);
  FUSIONKIT_ADOPT(group_norm, GroupNormKernel);
  FUSIONKIT_ADOPT(group_norm_grad, GroupNormGradKernel);
  FUSIONKIT_ADOPT(swiglu, SwiGLUKernel);
  FUSIONKIT_ADOPT(swiglu_grad, SwiGLUGradKernel);
  FUSIONKIT_ADOPT(einsum, EinsumKernel);
  FUSIONKIT_ADOPT(einsum_grad, EinsumGradKernel);
}

}  // namespace fusionkit_emulator::kernels
