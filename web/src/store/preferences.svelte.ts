/** What the reader chose for this browser. */

import type { Options } from '../chat/types';
import { optionsOf } from './shape';

export type Theme = 'system' | 'light' | 'dark';

function stored(name: string): string | null {
  return localStorage.getItem(`abyssal.${name}`);
}

function keep(name: string, value: string): void {
  localStorage.setItem(`abyssal.${name}`, value);
}

function storedOptions(): Options {
  try {
    return optionsOf(JSON.parse(stored('options') ?? '{}'));
  } catch {
    return {};
  }
}

class Preferences {
  private chosenTheme = $state<Theme>((stored('theme') as Theme | null) ?? 'system');
  private wantsInsight = $state(stored('insight') !== 'off');
  private showsSidebar = $state(stored('sidebar') !== 'off');

  get theme(): Theme {
    return this.chosenTheme;
  }

  set theme(theme: Theme) {
    this.chosenTheme = theme;
    keep('theme', theme);
    this.applyTheme();
  }

  /** Whether answers are asked for with probabilities and experts. */
  get insight(): boolean {
    return this.wantsInsight;
  }

  set insight(on: boolean) {
    this.wantsInsight = on;
    keep('insight', on ? 'on' : 'off');
  }

  get sidebar(): boolean {
    return this.showsSidebar;
  }

  set sidebar(on: boolean) {
    this.showsSidebar = on;
    keep('sidebar', on ? 'on' : 'off');
  }

  /** What new chats begin with. */
  get options(): Options {
    return storedOptions();
  }

  set options(options: Options) {
    keep('options', JSON.stringify(options));
  }

  /** Put the theme on the document. */
  applyTheme(): void {
    const root = document.documentElement;
    if (this.theme === 'system') delete root.dataset['theme'];
    else root.dataset['theme'] = this.theme;
  }
}

export const preferences = new Preferences();
