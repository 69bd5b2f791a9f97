// The schema of every op of zerosum_ext. Kernels register themselves at the end of their own files; the
// checks that users meet, autograd and the fall-back live in Python (zerosum_ext/_ops and the module of each
// topic).
#include "common/losses.h"
#include "cpu/simd.h"
#include "torch_stable.h"

#include <string>

namespace zx {

// The names of all losses, in the order of their numbers, and the instruction set in use: what Python asks at
// load.
std::string loss_names() {
  std::string names;
#define ZX_NAME(kind, name, type) names += (names.empty() ? "" : ",") + std::string(name);
  ZX_ALL_LOSSES(ZX_NAME)
#undef ZX_NAME
  return names;
}

std::string cpu_isa() { return cpu::isa_name(); }

}  // namespace zx

STABLE_TORCH_LIBRARY(zerosum_ext, m) {
  m.def("loss_names() -> str");
  m.def("cpu_isa() -> str");

  // ---- losses on scores (csrc/common/losses.h). reduction: 0 none, 1 sum, 2 mean. With grad the derivatives of the
  // reduced value are returned too, else empty tensors. aux_pos and aux_neg are the constants that a loss takes beside
  // each positive and negative.
  m.def(
      "pair_loss(Tensor pos, Tensor neg, Tensor? aux_pos, Tensor? aux_neg, Tensor? weight, int loss, float a, float b, "
      "float c, int reduction, bool grad) -> (Tensor value, Tensor grad_pos, Tensor grad_neg)");
  m.def(
      "macr_loss(Tensor pos, Tensor neg, Tensor user_branch, Tensor pos_branch, Tensor neg_branch, Tensor? weight, "
      "float alpha, float beta, int reduction, bool grad) -> (Tensor value, Tensor grad_pos, Tensor grad_neg, "
      "Tensor grad_user, Tensor grad_pos_branch, Tensor grad_neg_branch)");
  // Gradients times a factor of one number, in place (nothing is done where it is exactly 1) or to new tensors.
  m.def("scale_gradients_(Tensor(a!)[] gradients, Tensor factor) -> ()");
  m.def("scale_gradients(Tensor[] gradients, Tensor factor) -> Tensor[]");

  // ---- matrix factorization: a loss of dot products of embedding rows. constants [I] are those that a loss takes
  // beside each item. coefficient [B, J] (with grad): the derivative of the reduced value with respect to each score,
  // positives first. failed [1]: the first id out of range, as its place among users, positives and negatives one after
  // another, or -1. mf_gradient's l2 is that of one gathered row: l2 / B for a mean. padded: on a GPU, which would have
  // to be waited for, sparse results have as many rows as could occur; those that are too many are numbered as the
  // table's end and hold nothing. atomics: on a GPU, dense gradients in whatever order the additions come.
  m.def(
      "mf_loss(Tensor user_embedding, Tensor item_embedding, Tensor? item_bias, Tensor users, Tensor positives, "
      "Tensor negatives, Tensor? constants, Tensor? weight, int loss, float a, float b, float c, float l2, "
      "int reduction, bool grad) -> (Tensor value, Tensor coefficient, Tensor failed)");
  m.def(
      "mf_gradient(Tensor user_embedding, Tensor item_embedding, Tensor users, Tensor positives, Tensor negatives, "
      "Tensor coefficient, Tensor scale, float l2, bool user, bool item, bool bias, bool sparse, bool padded=False, "
      "bool atomics=False) -> (Tensor user_rows, Tensor user_values, Tensor item_rows, Tensor item_values, "
      "Tensor bias_values)");
  // One step on a batch (csrc/cuda/mf_step.cuh), all tables and their optimizer's state in place; of an empty batch
  // none. settings float64 [3, 6] on the CPU, of users, items and biases: whether it is trained, lr, x, y, eps, and the
  // number of the step (from 1). lr and step of each table: one number where the tables are, to be read when the
  // kernels run, instead of those of settings; step is that of the step before, and moved on. longest: rows of
  // gradients are scaled down to this norm, if it is > 0. total: one float64 number, to which the loss summed over the
  // samples is added. weight [B]: of each sample, float32. normalize: scores are cosines. Returns the reduced loss,
  // float64.
  //
  // lists [L, K]: share samples in succession have the same K items, of list number (start + sample) / share; start is
  // one number, and there must be as many lists as any start asks for. held [B, K]: whether the user has the list's
  // item. Where he has, the sample takes the next one around the list that he does not have; where he has all, its row
  // of negatives. alone [B]: how many samples up to this one have their row of negatives.
  m.def(
      "mf_step(Tensor(a!) user_embedding, Tensor(b!) item_embedding, Tensor(c!)? item_bias, Tensor(d!)? user_first, "
      "Tensor(e!)? user_second, Tensor(f!)? item_first, Tensor(g!)? item_second, Tensor(h!)? bias_first, "
      "Tensor(i!)? bias_second, Tensor users, Tensor positives, Tensor negatives, Tensor? constants, Tensor settings, "
      "Tensor? user_lr, Tensor(j!)? user_step, Tensor? item_lr, Tensor(k!)? item_step, Tensor? bias_lr, "
      "Tensor(l!)? bias_step, Tensor(m!)? total, int optimizer, int loss, float a, float b, float c, float l2, "
      "float longest, int reduction, Tensor? weight=None, bool normalize=False, Tensor? lists=None, Tensor? "
      "start=None, "
      "Tensor? held=None, Tensor? alone=None, int share=0) -> Tensor");
  // Steps on consecutive batches of batch_size samples, all tables and their optimizer's state in place. settings
  // [3, 6], of users, items and biases: whether it is trained, lr, x, y, eps, and the number of the first step (from
  // 1). longest: rows of gradients are scaled down to this norm, if it is > 0. Returns the loss of each step;
  // asynchronous: Hogwild SGD sample by sample, and one number, the sum over all samples. normalize: scores are
  // cosines.
  m.def(
      "mf_train(Tensor(a!) user_embedding, Tensor(b!) item_embedding, Tensor(c!)? item_bias, Tensor(d!)? user_first, "
      "Tensor(e!)? user_second, Tensor(f!)? item_first, Tensor(g!)? item_second, Tensor(h!)? bias_first, "
      "Tensor(i!)? bias_second, Tensor users, Tensor positives, Tensor negatives, Tensor? constants, Tensor settings, "
      "int optimizer, int loss, float a, float b, float c, float l2, float longest, int reduction, int batch_size, "
      "bool asynchronous, bool normalize=False) -> Tensor");
  // The same on samples begin .. begin + samples of an epoch, drawn as sample_positives and sample_negatives below draw
  // them: positives from the matrix, negatives from what the excluded one lacks. shared: how many samples in succession
  // share their negatives (csrc/cpu/shared_samples.h), or 0. weights [nnz]: of the matrix's entries, and so of samples.
  m.def(
      "mf_train_sampled(Tensor(a!) user_embedding, Tensor(b!) item_embedding, Tensor(c!)? item_bias, "
      "Tensor(d!)? user_first, Tensor(e!)? user_second, Tensor(f!)? item_first, Tensor(g!)? item_second, "
      "Tensor(h!)? bias_first, Tensor(i!)? bias_second, Tensor indptr, Tensor indices, Tensor hint, int hint_shift, "
      "Tensor? gaps, Tensor? active, int order, int kept, int total, int begin, int samples, int positives, "
      "Tensor excluded_indptr, Tensor excluded_indices, Tensor? filter, Tensor? slots, Tensor? masses, int num_items, "
      "int k, int seed, int epoch, bool replacement, int shared, Tensor? constants, Tensor settings, int optimizer, "
      "int loss, "
      "float a, float b, float c, float l2, float longest, int reduction, int batch_size, bool asynchronous, "
      "bool normalize=False, Tensor? weights=None) -> Tensor");

  // Rows of users that minimise, for items as they are, the mean of the loss over the user's samples plus
  // l2 / 2 |row|^2, down to a gradient of tolerance times that of a row of zeros. indptr [n + 1]: the samples of each
  // user. positives [N], or [N, 2], and negatives [N, K]. kink: the width that the kinks of Zerosum and Pos2Neg2 are
  // rounded off by, or 0. A row is 0 without samples, and NaN where what it depends on is not finite.
  m.def(
      "fold_in(Tensor item_embedding, Tensor? item_bias, Tensor indptr, Tensor positives, Tensor negatives, "
      "Tensor? constants, int loss, float a, float b, float c, float kink, float l2, float tolerance, "
      "int max_iterations) -> Tensor");

  // ---- sampling (csrc/common/sampler.h). masses alone: ascending candidates; slots and masses: an alias table and its
  // prefix sums; neither: uniform. failed [1]: the first row whose user is out of range or lacks such a negative, or
  // -1. key [3]: seed, epoch and offset (or begin), to be read when the kernel runs, instead of the numbers (ops that
  // have no offset take no notice of it). complement_rows [2, R]: where some rows begin in the matrix, ascending, and
  // where their prefix sums begin in complement_masses (of each, one more than it has items); these change no sample.
  m.def(
      "sample_negatives(Tensor users, Tensor indptr, Tensor indices, Tensor? filter, Tensor? slots, Tensor? masses, "
      "int num_items, int k, int seed, int epoch, int offset, bool replacement, Tensor? key=None, "
      "Tensor? complement_rows=None, Tensor? complement_masses=None) -> (Tensor items, Tensor failed)");
  // The same of samples with these numbers, in any order: what a process draws that owns some users of an epoch.
  m.def(
      "sample_negatives_at(Tensor users, Tensor numbers, Tensor indptr, Tensor indices, Tensor? filter, Tensor? slots, "
      "Tensor? masses, int num_items, int k, int seed, int epoch, bool replacement, Tensor? key=None, "
      "Tensor? complement_rows=None, Tensor? complement_masses=None) -> (Tensor items, Tensor failed)");
  // The numbers of the samples that the epoch's shuffle takes to these cells of [0, total). Others are an error; on a
  // GPU, which nobody waits for, -1.
  m.def("unshuffle(Tensor cells, int total, int seed, int epoch, Tensor? key=None) -> Tensor");
  m.def(
      "sample_positives(Tensor indptr, Tensor indices, Tensor hint, int hint_shift, Tensor? gaps, Tensor? active, "
      "int order, int kept, int total, int begin, int rows, int positives, int seed, int epoch, Tensor? key=None) -> "
      "(Tensor users, Tensor positives)");
  m.def("row_filter(Tensor indptr, Tensor indices, int num_items) -> Tensor");
  m.def(
      "has_items(Tensor users, Tensor items, Tensor indptr, Tensor indices, Tensor? filter, int num_items) -> Tensor");

  // ---- ranking (csrc/common/ranking.h). indptr, indices: the held-out positives of all users; the n users in question
  // are rows of it, and offset [n + 1] says where each one's positives lie in scores, greater and equal. failed [1]:
  // the first row with a NaN score, or -1.
  // top_only: what is certainly not among a user's k best need not be counted: its `greater` is at least k.
  m.def(
      "rank_factors(Tensor user_factors, Tensor item_factors, Tensor? item_bias, Tensor users, Tensor offset, "
      "Tensor indptr, Tensor indices, Tensor? excluded_indptr, Tensor? excluded_indices, int k, bool top_only=False) "
      "-> (Tensor scores, "
      "Tensor greater, Tensor equal, Tensor candidates, Tensor top_items, Tensor failed, Tensor top_scores)");
  m.def(
      "rank_scores(Tensor scores, Tensor users, Tensor offset, Tensor indptr, Tensor indices, Tensor? excluded_indptr, "
      "Tensor? excluded_indices, int k) -> (Tensor scores, Tensor greater, Tensor equal, Tensor candidates, "
      "Tensor top_items, Tensor failed)");
  // What follows from the counts and lists, for each user and cut-off (csrc/cpu/rank_metrics.cpp).
  m.def(
      "user_metrics(Tensor offset, Tensor greater, Tensor equal, Tensor candidates, Tensor popularity, Tensor cutoffs, "
      "int ties) -> (Tensor at_k, Tensor auc, Tensor right, Tensor correlation, Tensor top_quantile, Tensor quantile)");
  m.def("list_metrics(Tensor lists, Tensor values, Tensor cutoffs) -> (Tensor sums, Tensor lengths, Tensor exposure)");

  // ---- the scores of all positives, never stored (csrc/cpu/csr_scores.cpp)
  m.def(
      "csr_score_moments(Tensor rows, Tensor columns, Tensor? column_bias, Tensor indptr, Tensor indices, "
      "Tensor column_x) -> Tensor");
  m.def(
      "csr_weighted_columns(Tensor rows, Tensor columns, Tensor? row_bias, Tensor? column_bias, Tensor indptr, "
      "Tensor indices, Tensor? row_x, Tensor? column_x, float slope) -> (Tensor out, Tensor out_bias)");

  // ---- a CSR matrix from pairs of codes (csrc/cpu/csr_build.cpp): rows ascending, of equal pairs the last. indices
  // and rows (the position of each entry among the pairs), int32, are as long as the pairs; indptr's end says how many
  // are entries.
  m.def(
      "csr_build(Tensor users, Tensor items, int num_users, int num_items) -> (Tensor indptr, Tensor indices, "
      "Tensor rows)");
  // Ids of a column of text by number (csrc/cpu/text_ids.cpp). The column comes in chunks of characters (uint8) with
  // the offset of each field, one more than there are fields (int32 or int64). codes int32: the rank of each field's
  // id. integer_ids: words are the distinct integers; failed [1] is the first field that is not the only spelling of an
  // int64, or -1, and the rest means nothing where there is one. text_ids: the distinct texts, in one such chunk.
  m.def("integer_ids(Tensor[] characters, Tensor[] offsets) -> (Tensor codes, Tensor words, Tensor failed)");
  m.def("text_ids(Tensor[] characters, Tensor[] offsets) -> (Tensor codes, Tensor words, Tensor word_offsets)");

  // ---- the graph of users and items (csrc/cpu/graph.cpp). Nodes are users, then items; row r of the square matrix has
  // the neighbours indices[indptr[r] .. indptr[r + 1]), or up to end[r], by their numbers on the other side. by_item:
  // the interactions in the order of the items' rows, by their numbers in that of the users'. seed: one int64 number.
  m.def(
      "graph_propagate(Tensor users, Tensor items, Tensor indptr, Tensor? end, Tensor indices, Tensor? row_scale, "
      "Tensor? column_scale, float factor) -> (Tensor users, Tensor items)");
  m.def(
      "graph_dropout(Tensor indptr, Tensor indices, Tensor by_item, int num_users, Tensor seed, float share) -> "
      "(Tensor end, Tensor indices, Tensor transposed_end, Tensor transposed_indices)");
}

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CompositeExplicitAutograd, m) {
  m.impl("loss_names", TORCH_BOX(&zx::loss_names));
  m.impl("cpu_isa", TORCH_BOX(&zx::cpu_isa));
}
