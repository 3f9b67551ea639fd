/** Changes on their way to the history: one after another, none lost when one fails. */

type Task = () => Promise<unknown>;

/** Runs tasks in order; a later task of the same name takes the place of one that waits. */
export class Outbox {
  private waiting: { name: string; task: Task }[] = [];
  private running: Promise<void> | null = null;
  private failed = false;

  /** `told` hears the problem of the first task, or null when all goes well again. */
  constructor(private readonly told: (problem: unknown) => void) {}

  /** How many changes are not stored yet. */
  get size(): number {
    return this.waiting.length;
  }

  /** Store something, soon. */
  put(name: string, task: Task): Promise<void> {
    const same = this.waiting.findLastIndex((one) => one.name === name);
    const isRunning = same === 0 && this.running !== null;
    if (same >= 0 && !isRunning) this.waiting[same] = { name, task };
    else this.waiting.push({ name, task });
    return this.failed ? Promise.resolve() : this.run();
  }

  /** Try again what failed. */
  retry(): Promise<void> {
    this.failed = false;
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
        this.failed = true;
        this.told(problem);
        return;
      }
      this.waiting.shift();
    }
    this.told(null);
  }
}
