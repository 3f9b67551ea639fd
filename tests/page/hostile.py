"""Texts that want to run: what OWASP's sheets on cross-site scripting warn of, as Markdown too."""

HOSTILE = [
    "<script>window.__ran = 1</script>",
    "<img src=x onerror='window.__ran = 1'>",
    "<svg/onload=window.__ran=1>",
    "<svg><script>window.__ran=1</script></svg>",
    "<iframe srcdoc='<script>parent.__ran=1</script>'></iframe>",
    "<a href='javascript:window.__ran=1'>x</a>",
    "[x](javascript:window.__ran=1)",
    "[x](JaVaScRiPt:window.__ran=1)",
    "[x](java\tscript:window.__ran=1)",
    "[x](data:text/html,<script>opener.__ran=1</script>)",
    "[x](vbscript:window.__ran=1)",
    "![x](javascript:window.__ran=1)",
    "![x](https://evil.example/beacon.png)",
    "<math><mtext></p><style><img src=x onerror=window.__ran=1>",
    "<details open ontoggle=window.__ran=1>",
    "<form action=javascript:window.__ran=1><button>x</button></form>",
    "<body onload=window.__ran=1>",
    "<input autofocus onfocus=window.__ran=1>",
    "<object data=javascript:window.__ran=1></object>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<base href=https://evil.example/>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<style>@import 'https://evil.example/x.css';</style>",
    "```html\n<script>window.__ran=1</script>\n```",
    '```"><img src=x onerror=window.__ran=1>\nx\n```',
    "`<img src=x onerror=window.__ran=1>`",
    r"$\href{javascript:window.__ran=1}{x}$",
    r"$$\htmlData{x=1}{\includegraphics{https://evil.example/a.png}}$$",
    r"\(\url{javascript:window.__ran=1}\)",
    "<p style='background:url(https://evil.example/x)'>x</p>",
    "| a |\n| --- |\n| <img src=x onerror=window.__ran=1> |",
    "&lt;script&gt;window.__ran=1&lt;/script&gt;",
    "\u202e<script>window.__ran=1</script>",
    '<noscript><p title="</noscript><img src=x onerror=window.__ran=1>">',
    "<template><script>window.__ran=1</script></template>",
    "{{constructor.constructor('window.__ran=1')()}}",
    "<x contenteditable onblur=window.__ran=1 tabindex=1>",
]

# Elements and attributes that no text may become, wherever it is shown.
FORBIDDEN = (
    "script", "iframe", "object", "embed", "style", "link", "base", "meta", "frame", "svg script",
    "[action]", "[formaction]", "[srcdoc]", "[style*=url]",
)  # fmt: skip

# Runs in the page before anything else: every change of it is looked at as it happens.
WATCH = """
  window.__found = [];
  document.addEventListener('securitypolicyviolation', (event) => {
    window.__found.push(`the policy had to stop ${event.violatedDirective} ${event.blockedURI}`);
  });
  const forbidden = FORBIDDEN;
  const allowed = /^(https?:|mailto:|#|data:image\\/(gif|png|jpeg|webp);|blob:)/i;
  const look = (root) => {
    if (root.closest('body') === null) return; // the head is where the page loads its own parts
    for (const one of [root, ...root.querySelectorAll('*')]) {
      if (one.matches(forbidden)) window.__found.push(one.outerHTML);
      for (const { name, value } of one.attributes) {
        if (name.startsWith('on')) window.__found.push(one.outerHTML);
        const isOurs = one.tagName === 'A' && one.closest('article') === null;
        const isAddress = name === 'href' || name === 'src';
        if (isAddress && !isOurs && !allowed.test(value.trim())) window.__found.push(one.outerHTML);
      }
    }
  };
  new MutationObserver((records) => {
    window.__changes = (window.__changes ?? 0) + 1;
    for (const { target, addedNodes, type } of records) {
      if (type === 'attributes') look(target);
      for (const node of addedNodes) if (node instanceof Element) look(node);
    }
  }).observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
""".replace("FORBIDDEN", repr(", ".join(FORBIDDEN)))
