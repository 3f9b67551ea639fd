// One pass of a packed DeepSeek-V3: every layer in one parallel region, one call from Python.
#include "stack.h"

#include <omp.h>

#include "stack_work.h"

namespace ab {
namespace {

constexpr long SOLO = 4;  // rows of a pass, up to which each thread does what belongs to a row

// Norm every row of x into the forms that the next matrices take.
void norm_rows(const Crew& crew, const Model& model, const float* x, const float* weight, long T,
               int forms, Rows act, Buffer<float>& scratch) {
  const Share mine = crew.rows(T);
  float* normed = scratch.get(model.hidden);
  for (long t = mine.begin; t < mine.end; t++) {
    norm_row(x + t * model.hidden, weight, model.hidden, (float)model.eps, normed);
    prepare_forms(act, t, normed, model.hidden, forms);
  }
}

// x (T, D) += y (T, Dp)
void add_rows(const Crew& crew, float* x, const float* y, long T, long D) {
  const Share mine = crew.rows(T);
  for (long t = mine.begin; t < mine.end; t++) add_row(x + t * D, y + t * round_up(D, 16), x + t * D, D);
}

// What a thread works on: its rows, and what all share.
struct Bench {
  Work& work;
  const Needs& needs;
  AttentionWork attention;
  ExpertWork experts;
  Rows input, heads, head;
  float *x, *y;
};

// x += attention(norm(x)); x += feed_forward(norm(x)). Ends with this thread's rows done.
void run_layer(Crew& crew, const Model& model, const Pass& pass, const Layer& layer, long number,
               const Told& told, const Bench& at) {
  const long T = pass.tokens, D = model.hidden, width = model.heads * model.value;
  Buffer<float>& scratch = at.work.scratch[crew.id];
  const AttentionWork& attention = at.attention;
  norm_rows(crew, model, at.x, layer.input_norm, T, at.needs.input, at.input, scratch);
  crew.gather();
  project_down(crew, model, pass, layer, number, attention);
  crew.wait();
  attend_absorbed(crew, model, pass, layer, number, attention);
  for (long s = 0; s < pass.sequences; s++)
    if (is_unfolded(pass, s)) attend_unfolded(crew, model, pass, layer, number, s, attention);
  const Share mine = crew.rows(T);
  Rows heads = at.heads;
  for (long t = mine.begin; t < mine.end; t++)
    prepare_forms(heads, t, attention.mixed + t * width, width, form(layer.o));
  crew.gather();
  project(crew, layer.o, heads, T, at.y, round_up(D, 16));
  crew.wait();
  add_rows(crew, at.x, at.y, T, D);
  norm_rows(crew, model, at.x, layer.post_norm, T, at.needs.input, at.input, scratch);
  crew.gather();
  if (layer.router.n) {
    if (crew.solo && model.experts <= LANES) {  // one panel: nothing to share
      linear(layer.router, at.input, 0, T, 0, 1, at.experts.logits, LANES);
    } else {
      project(crew, layer.router, at.input, T, at.experts.logits, round_up(model.experts, 16));
      crew.wait();
    }
  }
  feed_forward(crew, model, layer, T, told, at.experts, at.x);
}

void embed_row(const Model& model, long token, float* out) {
  const long D = model.hidden;
  if (model.embed_kind == F32) {
    std::memcpy(out, static_cast<const float*>(model.embed) + token * D, D * sizeof(float));
    return;
  }
  const bf16* row = static_cast<const bf16*>(model.embed) + token * D;
  for (long i = 0; i < D; i += VF) {
    const long some = std::min<long>(VF, D - i);
    store_n(out + i, load_bf16_n(row + i, some), some);
  }
}

// x = join(norm(embedding), norm(hidden before))
void start_ahead(const Crew& crew, const Model& model, const Pass& pass, Rows both,
                 const Bench& at) {
  const Ahead& ahead = *model.ahead;
  const long D = model.hidden, Dp = round_up(D, 16);
  float *row = at.work.scratch[crew.id].get(3 * D), *embedded = row + 2 * D;
  const Share mine = crew.rows(pass.tokens);
  for (long t = mine.begin; t < mine.end; t++) {
    embed_row(model, pass.token[t], embedded);
    norm_row(embedded, ahead.embed_norm, D, (float)model.eps, row);
    norm_row(pass.before + t * D, ahead.hidden_norm, D, (float)model.eps, row + D);
    prepare_forms(both, t, row, 2 * D, form(ahead.join));
  }
  crew.gather();
  project(crew, ahead.join, both, pass.tokens, at.y, Dp);
  crew.wait();
  for (long t = mine.begin; t < mine.end; t++)
    std::memcpy(at.x + t * D, at.y + t * Dp, D * sizeof(float));
}

// Rows of the pass, normed, and the scores of those that are asked for.
void finish(const Crew& crew, const Model& model, const Pass& pass, const float* norm,
            const Bench& at) {
  const long D = model.hidden, V = round_up(model.vocab, 16);
  const Share mine = crew.solo && crew.id ? Share(0, 0, 1) : crew.rows(pass.tokens);
  for (long t = mine.begin; t < mine.end; t++)
    norm_row(at.x + t * D, norm, D, (float)model.eps, pass.hidden + t * D);
  if (!pass.scored) return;
  crew.gather();
  const Share some = crew.rows(pass.scored);
  float* normed = at.work.scratch[crew.id].get(D);
  Rows head = at.head;
  for (long i = some.begin; i < some.end; i++) {
    norm_row(at.x + pass.scored_row[i] * D, norm, D, (float)model.eps, normed);
    prepare_forms(head, i, normed, D, form(model.head));
  }
  crew.gather();
  project(crew, model.head, head, pass.scored, pass.scores, V);
}

// One thread's way through a pass.
void walk(Crew& crew, const Model& model, const Pass& pass, const Bench& at) {
  const long T = pass.tokens, D = model.hidden;
  const Share mine = crew.rows(T);
  const float* norm = model.norm;
  if (pass.before) {
    Rows both = at.heads;
    both.kp = round_up(2 * D, 64);
    start_ahead(crew, model, pass, both, at);
    run_layer(crew, model, pass, model.ahead->layer, model.layers, {}, at);
    norm = model.ahead->norm;
  } else {
    for (long t = mine.begin; t < mine.end; t++) embed_row(model, pass.token[t], at.x + t * D);
    Told told{pass.met, pass.chosen};
    for (long i = 0; i < model.layers; i++) {
      const Layer& layer = model.layer[i];
      run_layer(crew, model, pass, layer, i, told, at);
      if (layer.router.n && told.met) told.met += model.experts;
      if (layer.router.n && told.chosen) told.chosen += T * model.chosen;
    }
  }
  finish(crew, model, pass, norm, at);
}

Bench bench(Work& work, RowWork& rows, const Model& model, const Pass& pass, const Needs& needs) {
  const long T = pass.tokens, D = model.hidden, width = model.heads * model.value;
  const int joined = pass.before ? form(model.ahead->join) : 0;
  const Rows input = rows.input.get(T, D, needs.input);
  Rows heads = rows.heads.get(T, std::max(width, joined ? 2 * D : 0), needs.heads | joined);
  heads.kp = round_up(width, 64);
  return {work,
          needs,
          attention_work(work, rows, model, pass, needs, input),
          expert_work(work, rows, model, T, needs, input),
          input,
          heads,
          rows.head.get(pass.scored, D, form(model.head)),
          rows.x.get(T * D),
          work.y.get(T * round_up(D, 16))};
}

Pass placed(const Given& given, Work& work) {
  int32_t *first = work.first.get(given.sequences), *table = work.table.get(given.sequences);
  int32_t *position = work.position.get(given.tokens), *slot = work.slot.get(given.tokens);
  int32_t row = 0, page = 0;
  for (long s = 0; s < given.sequences; s++) {
    first[s] = row;
    table[s] = page;
    const int32_t end = given.start[s] + given.count[s];
    for (int32_t at = given.start[s]; at < end; at++, row++) {
      position[row] = at;
      slot[row] = given.pages[page + at / LATENT_PAGE] * LATENT_PAGE + at % LATENT_PAGE;
    }
    page += (end + LATENT_PAGE - 1) / LATENT_PAGE;
  }
  return {given, first, table, position, slot};
}

void run(const Model& model, const Given& given, Work& work) {
  const Pass pass = placed(given, work);
  const Needs& needs = needs_of(model, pass, work);
  prepare_threads(work, model, pass, needs);
  const bool solo = pass.tokens <= SOLO && pass.threads > 1;
  work.rows.resize(pass.threads);
  std::vector<Bench> benches;
  for (long i = 0; i < (solo ? pass.threads : 1); i++)
    benches.push_back(bench(work, work.rows[i], model, pass, needs));
  Barrier barrier;
  Ticket tickets[TICKETS];
#pragma omp parallel num_threads(pass.threads)
  {
    Unit unit;
#pragma omp single
    barrier.among(omp_get_num_threads());  // the system may give fewer than were asked for
    Crew crew{omp_get_thread_num(), omp_get_num_threads(), solo, barrier, tickets};
    walk(crew, model, pass, benches[solo ? crew.id : 0]);
  }
}

}  // namespace
}  // namespace ab

extern "C" int64_t ab_stack_new() { return reinterpret_cast<int64_t>(new ab::Work); }

extern "C" void ab_stack_free(int64_t work) { delete reinterpret_cast<ab::Work*>(work); }

// `model` and `pass` are addresses of the structures of stack.h.
extern "C" void ab_stack_run(int64_t work, int64_t model, int64_t pass) {
  ab::run(*reinterpret_cast<ab::Model*>(model), *reinterpret_cast<ab::Given*>(pass),
          *reinterpret_cast<ab::Work*>(work));
}

// logits (rows, ldo) = hidden (rows, D) through the head; ldo is the vocabulary rounded up to 16.
extern "C" void ab_stack_head(int64_t work, int64_t model, const float* hidden, int64_t rows,
                              float* logits, int64_t ldo, int64_t threads) {
  using namespace ab;
  const Model& m = *reinterpret_cast<Model*>(model);
  Work& own = *reinterpret_cast<Work*>(work);
  own.rows.resize(std::max<size_t>(own.rows.size(), 1));
  Rows x = own.rows[0].input.get(rows, m.hidden, form(m.head));
  for (long i = 0; i < rows; i++)
    prepare_forms(x, i, hidden + i * m.hidden, m.hidden, form(m.head));
  Barrier barrier;
#pragma omp parallel num_threads(threads)
  {
    Unit unit;
    const Crew crew{omp_get_thread_num(), omp_get_num_threads(), false, barrier, nullptr};
    project(crew, m.head, x, rows, logits, ldo);
  }
}

// The sizes of the structures that Python mirrors: Model, Layer, Ahead, Given, Mat.
extern "C" int64_t ab_stack_sizes(int64_t* sizes) {
  const int64_t all[] = {sizeof(ab::Model), sizeof(ab::Layer), sizeof(ab::Ahead), sizeof(ab::Given),
                         sizeof(ab::Mat)};
  std::copy(std::begin(all), std::end(all), sizes);
  return std::size(all);
}
