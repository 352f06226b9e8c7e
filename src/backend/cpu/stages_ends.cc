#include <cstring>

#include "backend/cpu/stages.h"

namespace manta::backend::cpu {

void CpuBackend::embed(Lane&, const StepView& view, const PackedWeight& embedding, Hidden& out) {
  for_rows(view.num_tokens, shape().hidden_size / 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      embedding_row(embedding, view.token_ids.as<int32_t>()[i], row(out.hidden, i));
    }
  });
  out.residual_valid = false;
}

void CpuBackend::embedding_row(const PackedWeight& embedding, TokenId token, float* out) const {
  const auto& table = static_cast<const EmbeddingWeight&>(embedding);
  const int64_t d = table.hidden_size;
  if (table.bf16.empty()) {
    std::memcpy(out, table.f32.data() + token * d, sizeof(float) * d);
  } else {
    kernels_.from_bf16(table.bf16.data() + token * d, static_cast<int>(d), out);
  }
}

void CpuBackend::head(Lane&, const StepView& view, const HeadWeights& w, Activations& act, Hidden& h) {
  for_rows(view.num_tokens, shape().hidden_size / 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) add_and_norm(h, i, values(*w.norm), row(act.final_hidden, i), nullptr);
  });
  h.residual_valid = true;
  const int32_t* rows = view.logit_rows.as<int32_t>();
  for (int i = 0; i < view.num_logit_rows; ++i) {
    kernels_.to_bf16(row(act.final_hidden, rows[i]), shape().hidden_size, row_bf16(scratch_.normed, i));
  }
  linear(scratch_.normed, view.num_logit_rows, matrix(w.head), act.logits);
}

void CpuBackend::mtp_input(Lane&, const StepView& view, const PackedWeight& embedding, const MtpWeights& w,
                           Activations& act) {
  const int d = shape().hidden_size;
  for_rows(view.num_tokens, d / 2, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      uint16_t* pair = row_bf16(scratch_.mtp_pair, i);
      float* embedded = row(act.mtp.residual, i);  // nothing is in it yet
      embedding_row(embedding, next_token(view, static_cast<int>(i)), embedded);
      kernels_.add_rmsnorm(embedded, nullptr, values(*w.enorm), d, shape().rms_norm_eps, nullptr, pair);
      kernels_.add_rmsnorm(row(act.final_hidden, i), nullptr, values(*w.hnorm), d, shape().rms_norm_eps, nullptr,
                           pair + d);
    }
  });
  linear(scratch_.mtp_pair, view.num_tokens, matrix(w.eh_proj), act.mtp.hidden);
  act.mtp.residual_valid = false;
}

// Draft logits replace the step's in act.logits: row i is sampling slice i.
void CpuBackend::mtp_draft(Lane&, const StepView& view, const PackedWeight& norm, const HeadWeights& w,
                           Activations& act) {
  const int32_t* rows = view.sample.draft_row.as<int32_t>();
  for (int i = 0; i < view.sample.num_slices; ++i) {
    add_and_norm(act.mtp, rows[i], values(norm), nullptr, row_bf16(scratch_.normed, i));
  }
  linear(scratch_.normed, view.sample.num_slices, matrix(w.head), act.logits);
  store_drafts(view, act.logits);
}

}  // namespace manta::backend::cpu
