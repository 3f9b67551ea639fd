/** The language of the page: chosen from the browser's, kept once the reader has chosen. */

import { type Catalog, en, type Key } from './en';

export const LANGUAGES = {
  en: 'English',
  fr: 'Français',
  it: 'Italiano',
  ar: 'العربية',
  zh: '中文',
} as const;

export type Language = keyof typeof LANGUAGES;

const STORED = 'abyssal.language';

// Each catalog is a chunk of its own; English is there from the start.
const CATALOGS: Record<Language, () => Promise<Catalog>> = {
  en: () => Promise.resolve(en),
  fr: async () => (await import('./fr')).fr,
  it: async () => (await import('./it')).it,
  ar: async () => (await import('./ar')).ar,
  zh: async () => (await import('./zh')).zh,
};

function isLanguage(name: string): name is Language {
  return Object.hasOwn(LANGUAGES, name);
}

/** The first of the browser's languages that the page speaks. */
export function preferred(wanted: readonly string[]): Language {
  for (const tag of wanted) {
    const name = tag.toLowerCase().split('-')[0] ?? '';
    if (isLanguage(name)) return name;
  }
  return 'en';
}

class Words {
  language = $state.raw<Language>('en');
  private catalog = $state.raw<Catalog>(en);

  /** Speak the reader's language. */
  async start(): Promise<void> {
    const chosen = localStorage.getItem(STORED) ?? '';
    await this.speak(isLanguage(chosen) ? chosen : preferred(navigator.languages));
  }

  /** Change the language, and remember it. */
  async choose(language: Language): Promise<void> {
    localStorage.setItem(STORED, language);
    await this.speak(language);
  }

  private async speak(language: Language): Promise<void> {
    this.catalog = await CATALOGS[language]();
    this.language = language;
    document.documentElement.lang = language;
    document.documentElement.dir = language === 'ar' ? 'rtl' : 'ltr';
  }

  /** A text with its places filled. */
  say(key: Key, values: Record<string, string | number> = {}): string {
    return this.catalog[key].replace(/\{(\w+)\}/g, (place, name: string) => {
      const value = values[name];
      if (value === undefined) return place;
      return typeof value === 'number' ? this.number(value) : value;
    });
  }

  number(value: number, options: Intl.NumberFormatOptions = {}): string {
    return new Intl.NumberFormat(this.language, options).format(value);
  }

  /** At most two decimals, fewer for large numbers. */
  short(value: number): string {
    return this.number(value, { maximumSignificantDigits: value >= 100 ? 3 : 2 });
  }

  compact(value: number): string {
    return this.number(value, { notation: 'compact', maximumFractionDigits: 1 });
  }

  percent(value: number): string {
    return this.number(value, { style: 'percent', maximumFractionDigits: 1 });
  }

  seconds(milliseconds: number): string {
    const value = milliseconds / 1000;
    const digits = value < 10 ? 1 : 0;
    return this.number(value, { style: 'unit', unit: 'second', unitDisplay: 'short', maximumFractionDigits: digits });
  }

  milliseconds(value: number): string {
    return value >= 1000
      ? this.seconds(value)
      : this.number(value, { style: 'unit', unit: 'millisecond', maximumFractionDigits: 0 });
  }

  bytes(value: number): string {
    const units = ['byte', 'kilobyte', 'megabyte', 'gigabyte', 'terabyte'];
    const place = Math.min(units.length - 1, value > 0 ? Math.floor(Math.log10(value) / 3) : 0);
    const unit = units[place] ?? 'byte';
    return this.number(value / 1000 ** place, { style: 'unit', unit, unitDisplay: 'short', maximumFractionDigits: 1 });
  }

  time(milliseconds: number): string {
    return new Intl.DateTimeFormat(this.language, { dateStyle: 'medium', timeStyle: 'short' }).format(milliseconds);
  }
}

export const words = new Words();

/** A text of the page in the reader's language. */
export function t(key: Key, values: Record<string, string | number> = {}): string {
  return words.say(key, values);
}
