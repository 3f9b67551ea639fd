import { describe, expect, test } from 'vitest';
import { definitions, splitBlocks } from '../src/text/blocks';

describe('splitBlocks', () => {
  test.each([
    ['', []],
    ['one\ntwo\n\n\nthree', ['one\ntwo', 'three']],
    ['```py\na\n\nb\n```\n\nafter', ['```py\na\n\nb\n```', 'after']],
    ['````\n```\n\nx\n````', ['````\n```\n\nx\n````']],
    ['```\nopen\n\nstill', ['```\nopen\n\nstill']],
    ['$$\na\n\nb\n$$\n\nafter', ['$$\na\n\nb\n$$', 'after']],
    ['\\[\na\n\nb\n\\]\n\nafter', ['\\[\na\n\nb\n\\]', 'after']],
    ['$$x$$\n\nafter', ['$$x$$', 'after']],
    ['1. a\n\n2. b\n\n   more\n\nafter', ['1. a\n\n2. b\n\n   more', 'after']],
    ['- a\n\n  ```\n  x\n\n  y\n  ```\n\nafter', ['- a\n\n  ```\n  x\n\n  y\n  ```', 'after']],
    ['use ```x``` here\n\nafter', ['use ```x``` here', 'after']],
    ['a\r\n\r\nb', ['a', 'b']],
  ])('%j', (source, blocks) => {
    expect(splitBlocks(source)).toEqual(blocks);
  });

  const TEXT = '# Title\n\nA paragraph\nof two lines.\n\n```js\nlet a = 1;\n\nlet b;\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n$$\nx^2\n$$\n\nThe end.';

  test('as a text grows, all blocks but the last stay as they are', () => {
    let before: string[] = [];
    for (let end = 1; end <= TEXT.length; end++) {
      const blocks = splitBlocks(TEXT.slice(0, end));
      expect(blocks.slice(0, Math.max(0, before.length - 1))).toEqual(before.slice(0, -1));
      before = blocks;
    }
  });

  test('nothing but blank lines is lost', () => {
    const letters = (text: string): string => text.replace(/\s/g, '');
    expect(letters(splitBlocks(TEXT).join('\n'))).toBe(letters(TEXT));
  });
});

test('link definitions are found wherever they stand', () => {
  expect(definitions('see [a]\n\n[a]: https://a.example\n')).toBe('[a]: https://a.example');
  expect(definitions('nothing [a](b) here')).toBe('');
});
