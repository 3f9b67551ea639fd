/** One open chat: its messages, the answer being written, and everything that can be done to it. */

import { complete } from '../api/complete';
import type { Served } from '../api/model';
import { reasonOf } from '../i18n/reason';
import type { ChatPatch, History } from '../store/history';
import { Outbox } from '../store/outbox';
import { preferences } from '../store/preferences.svelte';
import { Answer } from './answer';
import { fitting } from './fitting';
import { counter, fit, roomFor } from './fit';
import { bodyOf, messagesOf, titleOf } from './prompt';
import { branchesOf, currentOf, leafBelow, pathTo } from './tree';
import { type Attachment, type Chat, type Message, newId, type Options, type WholeChat } from './types';

const SAVE_EVERY_MS = 5000; // while an answer is written

/** The message that grows. */
export interface Live {
  id: string;
  content: string;
  reasoning: string | null;
  calls: number;
}

export interface Surroundings {
  history: History;
  served: Served;
  /** Called when a chat was made or changed, so that the list can follow. */
  changed: (chat: Chat) => void;
}

export class Talk {
  readonly id: string;
  chat = $state.raw<Chat | null>(null);
  messages = $state.raw<Message[]>([]);
  current = $state.raw<string | null>(null);
  options = $state.raw<Options>({});
  live = $state.raw<Live | null>(null);
  unsaved = $state.raw<unknown>(null);
  readonly path: Message[] = $derived(pathTo(this.messages, this.current));
  readonly branches = $derived(branchesOf(this.messages));

  private stopper: AbortController | null = null;
  private readonly outbox = new Outbox((problem) => (this.unsaved = problem));

  constructor(
    private readonly around: Surroundings,
    whole: WholeChat | null = null,
  ) {
    this.id = whole?.id ?? newId();
    this.options = whole?.options ?? preferences.options;
    if (whole !== null) {
      this.chat = whole;
      this.messages = whole.messages;
      this.current = currentOf(whole.messages, whole.current);
    }
  }

  get isBusy(): boolean {
    return this.live !== null;
  }

  /** Ask something. */
  async send(text: string, files: Attachment[] = []): Promise<void> {
    const data = files.length > 0 ? { attachments: files } : {};
    await this.begin(text, files);
    this.add(this.made('user', text, this.current, data));
    await this.answer(this.current);
  }

  /** Ask the same again: a new answer beside the old one. */
  async regenerate(message: Message): Promise<void> {
    await this.answer(message.parent);
  }

  /** Another text at the place of a message: a new branch, answered if it is a question. */
  async edit(message: Message, text: string, files?: Attachment[]): Promise<void> {
    const data = { ...message.data, edited: true };
    delete data.insight;
    if (files !== undefined) data.attachments = files;
    const edited = this.made(message.role, text, message.parent, data);
    this.add({ ...edited, reasoning: message.reasoning });
    if (message.role === 'user' || message.role === 'tool') await this.answer(edited.id);
  }

  /** The results of the calls in an answer, by call id; then the model goes on. */
  async giveResults(results: { id: string; text: string }[]): Promise<void> {
    for (const { id, text } of results) {
      this.add(this.made('tool', text, this.current, { tool_call_id: id }));
    }
    await this.answer(this.current);
  }

  /** Show the branch that begins with this message. */
  show(message: Message): void {
    this.current = leafBelow(this.messages, message.id);
    this.change({ current: this.current });
  }

  /** End the answer that is being written; what there is stays. */
  stop(): void {
    this.stopper?.abort();
  }

  /** Change title, folder, pin or options. */
  change(patch: ChatPatch): void {
    if (patch.options !== undefined) this.options = patch.options;
    if (this.chat === null) return;
    this.chat = { ...this.chat, ...patch };
    this.around.changed(this.chat);
    const { history } = this.around;
    void this.outbox.put(`chat ${Object.keys(patch).join()}`, () => {
      const { current } = patch;
      if (current === undefined) return history.putChat(this.id, patch);
      return history.putChat(this.id, { ...patch, current: this.storedAbove(current) });
    });
  }

  /** Store again what could not be stored. */
  retrySaving(): void {
    const moved = this.messages.filter(({ parent }) => parent !== null && this.outbox.hasRefused(parent));
    void this.outbox.retry();
    for (const message of moved) this.store(message); // back below the message they belong to
  }

  /** Whether something would be lost by leaving. */
  get isUnsaved(): boolean {
    return this.isBusy || this.outbox.size > 0;
  }

  private async begin(text: string, files: Attachment[]): Promise<void> {
    if (this.chat !== null) return;
    const now = Date.now();
    this.chat = {
      id: this.id, title: titleOf(text, files), folder: null, pinned: false,
      options: this.options, current: null, created: now, updated: now, deleted: null,
    };
    const { title, options } = this.chat;
    await this.outbox.put('make', () => this.around.history.putChat(this.id, { title, options }));
    this.around.changed(this.chat);
  }

  private made(
    role: Message['role'],
    content: string,
    parent: string | null,
    data: Message['data'],
  ): Message {
    return { id: newId(), parent, role, content, reasoning: null, data, created: Date.now() };
  }

  private add(message: Message): void {
    this.messages = [...this.messages, message];
    this.current = message.id;
    this.save(message);
  }

  private store(message: Message): void {
    const kept = { ...message, data: fitting(message.data) };
    const { history } = this.around;
    void this.outbox.put(message.id, () =>
      history.putMessage(this.id, { ...kept, parent: this.storedAbove(kept.parent) }),
    );
  }

  private save(message: Message): void {
    this.store(message);
    if (this.chat !== null) {
      this.chat = { ...this.chat, current: message.id, updated: Date.now() };
      this.around.changed(this.chat);
    }
  }

  /** A message or the nearest one above it that the history took: what follows hangs from there. */
  private storedAbove(id: string | null): string | null {
    const above = pathTo(this.messages, id);
    return above.findLast((message) => !this.outbox.hasRefused(message.id))?.id ?? null;
  }

  private replace(message: Message): void {
    this.messages = this.messages.map((one) => (one.id === message.id ? message : one));
  }

  private async answer(parent: string | null): Promise<void> {
    this.stop();
    const empty = this.made('assistant', '', parent, {});
    const read = pathTo(this.messages, parent);
    this.messages = [...this.messages, empty];
    this.current = empty.id;
    this.live = { id: empty.id, content: '', reasoning: null, calls: 0 };
    const stopper = (this.stopper = new AbortController());
    const answer = new Answer(performance.now());
    const saver = setInterval(() => { this.keep(empty, answer, { isWhole: false }); }, SAVE_EVERY_MS);
    let fault: unknown = null;
    try {
      const body = await this.bodyFor(read, answer);
      await complete(body, stopper.signal, answer, () => { this.grow(empty.id, answer); });
    } catch (problem) {
      fault = problem;
    } finally {
      clearInterval(saver);
    }
    this.keep(empty, answer, { fault });
    if (this.live?.id === empty.id) this.live = null;
  }

  /** The request; turns that no longer fit stay out of it, and the answer notes how many. */
  private async bodyFor(read: Message[], answer: Answer): Promise<object> {
    const { served } = this.around;
    const { options } = this;
    const thinks = served.thinking === 'choice';
    const limit = served.maxTokens - roomFor(served.maxTokens, options.max_tokens);
    const count = counter(thinks ? options.thinking === true : undefined, options.tools);
    const all = messagesOf(read, options);
    const { messages, dropped } = limit > 0 ? await fit(all, limit, count) : { messages: all, dropped: 0 };
    answer.leftOut = dropped;
    return bodyOf(served.id, messages, options, { insight: preferences.insight, thinks });
  }

  private grow(id: string, { content, reasoning, calls }: Answer): void {
    if (this.live?.id === id) this.live = { id, content, reasoning, calls: calls.length };
  }

  /** Store an answer as far as it is written; its insight, which is long, only when it is whole. */
  private keep(empty: Message, answer: Answer, { fault = null as unknown, isWhole = true } = {}): void {
    const { content, reasoning } = answer;
    const data = answer.data(performance.now(), isWhole);
    if (fault !== null) data.error = reasonOf(fault);
    const message = { ...empty, content, reasoning, data };
    const isShown = this.current;
    this.replace(message);
    this.save(message);
    // Saving makes a message current on the server; the reader may have moved on.
    if (isShown !== message.id) this.change({ current: isShown });
  }
}
