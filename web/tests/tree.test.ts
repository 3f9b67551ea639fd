import { expect, test } from 'vitest';
import { branchesOf, currentOf, inOrder, leafBelow, neighbor, pathTo } from '../src/chat/tree';
import type { Message } from '../src/chat/types';

function message(id: string, parent: string | null): Message {
  return { id, parent, role: 'user', content: id, reasoning: null, data: {}, created: 0 };
}

//  a - b - c
//    \ d - e
//        \ f
const TREE = [message('a', null), message('b', 'a'), message('c', 'b'), message('d', 'a'), message('e', 'd'), message('f', 'd')];
const ids = (messages: Message[]): string => messages.map(({ id }) => id).join('');
const at = (id: string): Message => TREE.find((one) => one.id === id) ?? message('?', null);

test('a path leads from the first message to the current one', () => {
  expect(ids(pathTo(TREE, 'c'))).toBe('abc');
  expect(ids(pathTo(TREE, 'f'))).toBe('adf');
  expect(ids(pathTo(TREE, 'none'))).toBe('');
  expect(ids(pathTo(TREE, null))).toBe('');
});

test('branches have neighbors, and a branch is shown to its newest end', () => {
  expect(ids([...(branchesOf(TREE).get('a') ?? [])])).toBe('bd');
  expect(neighbor(branchesOf(TREE), at('b'), 1)?.id).toBe('d');
  expect(neighbor(branchesOf(TREE), at('b'), -1)).toBeNull();
  expect(leafBelow(TREE, 'd')).toBe('f');
  expect(leafBelow(TREE, 'b')).toBe('c');
  expect(leafBelow(TREE, 'a')).toBe('f');
});

test('a chat goes on where it was, or at the newest message', () => {
  expect(currentOf(TREE, 'c')).toBe('c');
  expect(currentOf(TREE, 'gone')).toBe('f');
  expect(currentOf([], null)).toBeNull();
});

test('a ring, as a forged file may hold, ends', () => {
  const ring = [message('a', 'b'), message('b', 'a')];
  expect(pathTo(ring, 'a').length).toBe(2);
  expect(['a', 'b']).toContain(leafBelow(ring, 'a'));
});

test('messages of one millisecond stand behind their parents, whatever order they come in', () => {
  for (const some of [TREE, [...TREE].reverse()]) {
    const order = inOrder(some);
    expect(ids(order).split('').sort().join('')).toBe('abcdef');
    for (const [place, { parent }] of order.entries()) {
      expect(order.slice(0, place).some(({ id }) => id === parent)).toBe(parent !== null);
    }
  }
});

test('otherwise time orders them, and a ring of parents ends', () => {
  const late = { ...message('x', null), created: 2 };
  expect(ids(inOrder([late, { ...message('y', null), created: 1 }]))).toBe('yx');
  expect(ids(inOrder([message('p', 'q'), message('q', 'p')]))).toBe('qp');
});
