/** Changes on their way to the history: one after another, none lost when one fails. */

import { ApiError } from '../api/http';

type Task = () => Promise<unknown>;

interface Change {
  name: string;
  task: Task;
}

/** Whether asking again would be answered alike: the change itself is what is wrong. */
export function isForGood(problem: unknown): boolean {
  if (!(problem instanceof ApiError)) return false;
  const { status } = problem;
  return status >= 400 && status < 500 && ![401, 408, 429].includes(status);
}

/**
 * Runs changes in order; a later one of the same name takes the place of one that waits.
 *
 * One that fails stays first and is tried again with the next. One that is refused for good steps
 * aside, so that those behind it are stored, and is tried again when the reader says so.
 */
export class Outbox {
  private waiting: Change[] = [];
  private refused = new Map<string, { task: Task; problem: unknown }>();
  private running: Promise<void> | null = null;

  /** `told` hears what keeps a change from being stored, or null when all are. */
  constructor(private readonly told: (problem: unknown) => void) {}

  /** How many changes are not stored yet. */
  get size(): number {
    return this.waiting.length + this.refused.size;
  }

  /** Whether the change of this name was refused. */
  hasRefused(name: string): boolean {
    return this.refused.has(name);
  }

  /** Store something, soon. */
  put(name: string, task: Task): Promise<void> {
    this.refused.delete(name);
    const same = this.waiting.findLastIndex((one) => one.name === name);
    const isRunning = same === 0 && this.running !== null;
    if (same >= 0 && !isRunning) this.waiting[same] = { name, task };
    else this.waiting.push({ name, task });
    return this.run();
  }

  /** Try again what failed or was refused. */
  retry(): Promise<void> {
    const again = Array.from(this.refused, ([name, { task }]) => ({ name, task }));
    this.refused.clear();
    this.waiting.push(...again);
    return this.run();
  }

  private run(): Promise<void> {
    this.running ??= this.drain().finally(() => (this.running = null));
    return this.running;
  }

  private async drain(): Promise<void> {
    for (let next = this.waiting[0]; next !== undefined; next = this.waiting[0]) {
      try {
        await next.task();
      } catch (problem) {
        if (!isForGood(problem)) {
          this.told(problem);
          return;
        }
        this.refused.set(next.name, { task: next.task, problem });
      }
      this.waiting.shift();
    }
    this.told([...this.refused.values()].at(-1)?.problem ?? null);
  }
}
