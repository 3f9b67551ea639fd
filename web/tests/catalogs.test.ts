import { describe, expect, test } from 'vitest';
import { ar } from '../src/i18n/ar';
import { en } from '../src/i18n/en';
import { fr } from '../src/i18n/fr';
import { it as italian } from '../src/i18n/it';
import { preferred } from '../src/i18n/words.svelte';
import { zh } from '../src/i18n/zh';

const places = (text: string): string[] => [...text.matchAll(/\{\w+\}/g)].map(([place]) => place).sort();

describe.each(Object.entries({ fr, it: italian, ar, zh }))('the catalog %s', (_, catalog) => {
  test('has every key and no other', () => {
    expect(Object.keys(catalog).sort()).toEqual(Object.keys(en).sort());
  });

  test('fills the same places, and leaves nothing empty', () => {
    for (const [key, text] of Object.entries(en)) {
      const theirs = catalog[key as keyof typeof en];
      expect(places(theirs), key).toEqual(places(text));
      expect(theirs.trim(), key).not.toBe('');
    }
  });

  test('is a translation', () => {
    const same = Object.entries(en).filter(([key, text]) => catalog[key as keyof typeof en] === text);
    expect(same.length).toBeLessThan(20);
  });
});

test.each([
  [['fr-CA', 'en'], 'fr'],
  [['de', 'it-IT'], 'it'],
  [['zh-Hant-TW'], 'zh'],
  [['ar'], 'ar'],
  [['de', 'ja'], 'en'],
  [[], 'en'],
] as const)('of %j the page speaks %s', (wanted, language) => {
  expect(preferred(wanted)).toBe(language);
});
