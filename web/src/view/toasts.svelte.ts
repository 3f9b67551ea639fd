/** Short messages at the edge of the page, with a way on where there is one. */

import { reasonOf } from '../i18n/reason';

export interface Toast {
  id: number;
  text: string;
  isProblem: boolean;
  action?: { label: string; run: () => void };
}

const SHOWN_MS = 8000;

class Toasts {
  shown = $state.raw<Toast[]>([]);
  private last = 0;

  /** Show a text for a while. */
  show(text: string, action?: Toast['action'], isProblem = false): void {
    const id = ++this.last;
    const toast: Toast = { id, text, isProblem, ...(action === undefined ? {} : { action }) };
    this.shown = [...this.shown.slice(-2), toast];
    setTimeout(() => { this.hide(id); }, SHOWN_MS);
  }

  /** Say that something did not work. */
  problem(problem: unknown): void {
    this.show(reasonOf(problem), undefined, true);
  }

  hide(id: number): void {
    this.shown = this.shown.filter((toast) => toast.id !== id);
  }
}

export const toasts = new Toasts();

/** Run something that may fail, and say so if it does. */
export async function attempt(task: () => Promise<unknown>): Promise<void> {
  try {
    await task();
  } catch (problem) {
    toasts.problem(problem);
  }
}
