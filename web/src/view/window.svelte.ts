/**
 * The turns of a long chat that are on the page: those near what is read.
 *
 * While the reader scrolls, turns are added and removed at both ends, no more in a frame than it has
 * time for. What is read stays where it is. Below the last turn that is there, as much room is left
 * as those behind it took; above the first there is none.
 */

import { tick } from 'svelte';
import type { Message } from '../chat/types';

const FEWEST = 2; // turns, where a chat is opened
const NEAR_PX = 900; // less than this beyond the view: more turns are wanted
const FAR_PX = 2400; // more than this beyond it: they may go
const BUDGET_MS = 6; // of a frame
const USUAL_PX = 200; // of a turn that was not seen

export class TurnWindow {
  scroller = $state<HTMLElement>();
  private from = $state(0);
  private to = $state(Infinity); // Infinity: to the end, whatever comes
  private readonly heights = new Map<string, number>();
  private isMoving = false;

  readonly start = $derived.by(() => Math.min(this.from, Math.max(0, this.path().length - FEWEST)));
  readonly shown = $derived.by(() => this.path().slice(this.start, this.to));
  /** Pixels of the turns below. */
  readonly room = $derived.by(() => {
    if (this.to === Infinity) return 0;
    return this.path().slice(this.to).reduce((sum, { id }) => sum + this.heightOf(id), 0);
  });

  constructor(private readonly path: () => readonly Message[]) {
    this.from = Math.max(0, path().length - FEWEST);
  }

  /** Whether the reader sees the end, or nearly. */
  get isAtEnd(): boolean {
    const { scroller } = this;
    if (scroller === undefined) return true;
    return this.room === 0 && scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
  }

  /** Go to the end. */
  async toEnd(): Promise<void> {
    if (this.room > 0) this.from = Math.max(0, this.path().length - FEWEST);
    this.to = Infinity;
    await tick();
    this.scroller?.scrollTo({ top: this.scroller.scrollHeight });
    this.settle();
  }

  /** Bring what is wanted and take away what is far, frame by frame. */
  settle(): void {
    if (this.isMoving) return;
    this.isMoving = true;
    void this.move().finally(() => (this.isMoving = false));
  }

  private async move(): Promise<void> {
    for (;;) {
      const began = performance.now();
      do {
        const step = this.next();
        if (step === null) return;
        await this.keepingPlace(step);
      } while (performance.now() - began < BUDGET_MS);
      await new Promise(requestAnimationFrame);
    }
  }

  /** What to do next, if anything. */
  private next(): (() => void) | null {
    const { scroller } = this;
    if (scroller === undefined) return null;
    const turns = scroller.querySelectorAll<HTMLElement>('article');
    const [first, last] = [turns[0], turns[turns.length - 1]];
    if (first === undefined || last === undefined) return null;
    const view = scroller.getBoundingClientRect();
    const below = last.getBoundingClientRect().bottom - view.bottom;
    const above = view.top - first.getBoundingClientRect().top;
    if (below < NEAR_PX && this.room > 0) return () => { this.addBelow(-below); };
    if (above < NEAR_PX && this.start > 0) return () => (this.from = this.start - 1);
    if (turns.length <= FEWEST) return null;
    if (view.top - first.getBoundingClientRect().bottom > FAR_PX && !isHeld(first)) {
      return () => (this.from = this.start + 1);
    }
    if (last.getBoundingClientRect().top - view.bottom > FAR_PX && !isHeld(last)) {
      return () => { this.removeBelow(last); };
    }
    return null;
  }

  /** The next turn below, or the one that the reader has jumped to, `beyond` pixels further on. */
  private addBelow(beyond: number): void {
    const path = this.path();
    let skipped = 0;
    while (this.to < path.length - 1 && beyond - skipped > FAR_PX) {
      skipped += this.heightOf(path[this.to]?.id ?? '');
      this.to += 1;
    }
    if (skipped > 0) this.from = Math.max(0, this.to - 1);
    this.to = this.to + 1 >= path.length ? Infinity : this.to + 1;
  }

  private heightOf(id: string): number {
    return this.heights.get(id) ?? USUAL_PX;
  }

  private removeBelow(last: HTMLElement): void {
    const place = this.start + this.shown.length - 1;
    const message = this.path()[place];
    if (message !== undefined) this.heights.set(message.id, last.offsetHeight);
    this.to = place;
  }

  /** Change something while the distance to the end stays the same. */
  private async keepingPlace(change: () => void): Promise<void> {
    const { scroller } = this;
    if (scroller === undefined) return;
    const below = scroller.scrollHeight - scroller.scrollTop;
    change();
    await tick();
    const top = scroller.scrollHeight - below;
    if (Math.abs(top - scroller.scrollTop) >= 1) scroller.scrollTop = top;
  }
}

/** Whether somebody is at work in a turn. */
function isHeld(turn: HTMLElement): boolean {
  return turn.contains(document.activeElement) || turn.querySelector('textarea, dialog') !== null;
}
