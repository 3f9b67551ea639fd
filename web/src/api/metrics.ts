/** Prometheus text as numbers. */

export interface Sample {
  labels: Record<string, string>;
  value: number;
}

export type Metrics = Map<string, Sample[]>;

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** Every sample by its metric's name. */
export function parseMetrics(text: string): Metrics {
  const found: Metrics = new Map();
  for (const line of text.split('\n')) {
    if (line.startsWith('#')) continue;
    const parts = LINE.exec(line);
    if (parts === null) continue;
    const [, name = '', inner = '', number = ''] = parts;
    const labels: Record<string, string> = {};
    for (const [, label = '', value = ''] of inner.matchAll(LABEL)) {
      labels[label] = value.replace(/\\(.)/g, (_, mark: string) => (mark === 'n' ? '\n' : mark));
    }
    const row = found.get(name) ?? [];
    row.push({ labels, value: Number(number.replace('Inf', 'Infinity')) });
    found.set(name, row);
  }
  return found;
}

/** The sum of a metric's samples; 0 where there are none. */
export function total(metrics: Metrics, name: string): number {
  return (metrics.get(name) ?? []).reduce((sum, sample) => sum + sample.value, 0);
}

/** What the model page draws at one moment. */
export interface Moment {
  at_s: number;
  generated: number;
  prompted: number;
  running: number;
  waiting: number;
  cacheUse: number;
  firstTokenSum: number;
  firstTokenCount: number;
}

/** The numbers of one look at /metrics. */
export function momentOf(metrics: Metrics, at_s: number): Moment {
  return {
    at_s,
    generated: total(metrics, 'vllm:generation_tokens_total'),
    prompted: total(metrics, 'vllm:prompt_tokens_total'),
    running: total(metrics, 'vllm:num_requests_running'),
    waiting: total(metrics, 'vllm:num_requests_waiting'),
    cacheUse: total(metrics, 'vllm:kv_cache_usage_perc'),
    firstTokenSum: total(metrics, 'vllm:time_to_first_token_seconds_sum'),
    firstTokenCount: total(metrics, 'vllm:time_to_first_token_seconds_count'),
  };
}

/** Growth per second between neighbors of a row. */
export function rates(moments: readonly Moment[], of: (moment: Moment) => number): number[] {
  return moments.slice(1).map((moment, place) => {
    const before = moments[place] ?? moment;
    const elapsed_s = moment.at_s - before.at_s;
    return elapsed_s > 0 ? Math.max(0, of(moment) - of(before)) / elapsed_s : 0;
  });
}
