/** The whole page: what is served, which chat is open, where the address points. */

import { ApiError, forgetKey, onKeyNeeded, setKey } from './api/http';
import { type ModelCard, modelCard, type Served, served } from './api/model';
import { Talk } from './chat/talk.svelte';
import { ChatList } from './store/chats.svelte';
import { connect } from './store/history';

type State =
  | { name: 'starting' }
  | { name: 'login'; wrong: boolean }
  | { name: 'failed'; problem: unknown }
  | { name: 'ready'; served: Served; chats: ChatList; card: ModelCard | null };

export type Route = { view: 'chat'; id: string | null } | { view: 'model' };

/** Where an address points. */
export function routeOf(hash: string): Route {
  if (hash === '#/model') return { view: 'model' };
  return { view: 'chat', id: /^#\/chat\/([0-9a-f]{32})$/.exec(hash)?.[1] ?? null };
}

class App {
  state = $state.raw<State>({ name: 'starting' });
  route = $state.raw<Route>(routeOf(location.hash));
  talk = $state.raw<Talk | null>(null);
  missing = $state(false);
  private readonly open = new Map<string, Talk>(); // chats that are being answered go on unseen
  private asked = 0;

  /** Begin, and follow the address. */
  start(): void {
    onKeyNeeded(() => {
      if (this.state.name === 'ready') this.state = { name: 'login', wrong: false };
    });
    window.addEventListener('hashchange', () => {
      this.route = routeOf(location.hash);
      void this.follow();
    });
    window.addEventListener('beforeunload', (event) => {
      if ([...this.open.values()].some((talk) => talk.isUnsaved)) event.preventDefault();
    });
    void this.connect(false);
  }

  /** Ask the server who it is; `tried`: with a key that was just given. */
  async connect(tried: boolean): Promise<void> {
    try {
      const model = await served();
      const [history, card] = await Promise.all([connect(), modelCard()]);
      this.state = { name: 'ready', served: model, chats: new ChatList(history), card };
      await Promise.all([this.state.chats.load(), this.follow()]);
    } catch (problem) {
      const needsKey = problem instanceof ApiError && problem.status === 401;
      if (needsKey && tried) forgetKey();
      this.state = needsKey ? { name: 'login', wrong: tried } : { name: 'failed', problem };
    }
  }

  async login(key: string, remember: boolean): Promise<void> {
    setKey(key, remember);
    await this.connect(true);
  }

  logout(): void {
    forgetKey();
    location.hash = '#/';
    location.reload();
  }

  newChat(): void {
    if (location.hash === '#/' || location.hash === '') void this.follow();
    else location.hash = '#/';
  }

  /** A chat left the list; whoever looks at it goes on with a new one. */
  left(id: string): void {
    this.open.get(id)?.stop();
    this.open.delete(id);
    if (this.talk?.id === id) this.newChat();
  }

  isAnswering(id: string): boolean {
    return this.open.get(id)?.isBusy === true;
  }

  /** The open chat of this id, if it is open. */
  openTalk(id: string): Talk | undefined {
    return this.talk?.id === id ? this.talk : this.open.get(id);
  }

  private async follow(): Promise<void> {
    if (this.state.name !== 'ready' || this.route.view !== 'chat') return;
    const { id } = this.route;
    const turn = ++this.asked;
    this.missing = false;
    if (id === null) this.talk = this.made();
    else if (this.talk?.id !== id) {
      const known = this.open.get(id);
      this.talk = known ?? null;
      if (known !== undefined) return;
      try {
        const whole = await this.state.chats.history.get(id);
        if (turn === this.asked) this.talk = this.made(whole);
      } catch (problem) {
        if (!(problem instanceof ApiError)) throw problem;
        if (turn === this.asked) this.missing = true;
      }
    }
  }

  private made(whole: ConstructorParameters<typeof Talk>[1] = null): Talk {
    if (this.state.name !== 'ready') throw new Error('the page has not begun');
    const { chats, served: model } = this.state;
    for (const [id, talk] of this.open) if (!talk.isUnsaved) this.open.delete(id);
    const talk = new Talk(
      {
        history: chats.history,
        served: model,
        changed: (chat) => {
          this.open.set(chat.id, talk);
          chats.note(chat);
          if (this.talk === talk && location.hash !== `#/chat/${chat.id}` && this.route.view === 'chat') {
            history.replaceState(null, '', `#/chat/${chat.id}`);
            this.route = { view: 'chat', id: chat.id };
          }
        },
      },
      whole,
    );
    return talk;
  }
}

export const app = new App();
