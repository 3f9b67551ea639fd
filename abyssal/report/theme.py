"""How the report looks: one stylesheet, light and dark, phone and desktop and paper.

s1 ... s7 are the colors of curves and parts, chosen to differ in lightness as well as hue;
 h0 ... h9
those of the expert maps, from idle (blue) over balanced (neutral) to overworked (orange).
"""

CSS = """
:root{color-scheme:light dark;
--bg:#f3f6f8;--card:#fff;--ink:#0d2230;--soft:#516879;--line:#d9e2e8;--grid:#e8eef2;
--accent:#0a6f94;
--user:#0a6f94;--user-ink:#fff;--answer:#e9f0f4;--note:#0d2230;--note-ink:#f3f6f8;
--s1:#0a78a8;--s2:#d4532a;--s3:#17865f;--s4:#7a57c2;--s5:#a87800;--s6:#4e9fd1;--s7:#75889a;
--h0:#0b3c74;--h1:#1f6db0;--h2:#62a5d6;--h3:#abd0ea;--h4:#d8e8f3;--h5:#f1efe9;--h6:#fce0c6;
--h7:#f9b27f;--h8:#e97a38;--h9:#b2400c}
@media (prefers-color-scheme:dark){:root{
--bg:#06121a;--card:#0c1e29;--ink:#e2edf3;--soft:#92a9b7;--line:#1d3442;--grid:#173040;
--accent:#5cc8f2;
--user:#1577a0;--user-ink:#fff;--answer:#14303f;--note:#e2edf3;--note-ink:#06121a;
--s1:#4cc0ee;--s2:#ff8d63;--s3:#45d6a0;--s4:#b59bff;--s5:#eec04a;--s6:#9bd4ff;--s7:#9db2c0;
--h0:#a6dbff;--h1:#5fb2ea;--h2:#3587bf;--h3:#265f87;--h4:#1f4358;--h5:#1d2f3a;--h6:#4b3728;
--h7:#804b26;--h8:#c76c2b;--h9:#ff9d57}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:1120px;padding:0 20px 64px;background:var(--bg);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
header{padding:44px 0 8px}
h1{font-size:clamp(26px,5vw,40px);line-height:1.15;letter-spacing:-.02em;margin:0 0 12px}
h2{font-size:24px;letter-spacing:-.01em;margin:56px 0 4px;padding-top:12px;
border-top:2px solid var(--ink)}
h3{font-size:16px;margin:32px 0 10px}
p{margin:0 0 10px;max-width:72ch}
h1,h2,h3,figcaption,dd{overflow-wrap:anywhere}
.lede{font-size:17px;color:var(--soft)}
.when-run,.note,.span,.when,.unit{color:var(--soft);font-size:13px}
a{color:var(--accent)}
nav{position:sticky;top:0;z-index:9;display:flex;gap:4px 20px;overflow-x:auto;padding:10px 0;
background:var(--bg);border-bottom:1px solid var(--line);white-space:nowrap;font-size:14px}
nav a{text-decoration:none}
section,h3{scroll-margin-top:48px}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px 18px;
margin:0 0 16px;
min-width:0;break-inside:avoid}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:0 16px;
align-items:start}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(138px,1fr));gap:12px;
margin:16px 0}
.figures div{background:var(--card);border:1px solid var(--line);border-radius:12px;
padding:12px 14px}
.figures dt{font-size:13px;color:var(--soft)}
.figures dd{margin:0}
.figures .value{font-size:22px;font-weight:650;letter-spacing:-.02em;
line-height:1.3;
font-variant-numeric:tabular-nums}
.figures .remark{font-size:12.5px;color:var(--soft);line-height:1.4}
figure{margin:0}
figcaption{margin-bottom:8px}
figure>:last-child{margin-bottom:0}
.plot:last-child{margin-bottom:20px}
.maps{grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}
.legend,.heat-legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;margin:4px 0 0;
padding:0;
font-size:13px}
.legend li::before,.strip s{content:"";display:inline-block;width:14px;height:3px;border-radius:2px;
background:var(--c);margin-right:6px;vertical-align:middle}
.plot{position:relative;height:210px;margin:14px 6px 26px 46px}
.plot.tall{height:330px}
.plot svg,.map svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.plot path{fill:none;stroke:var(--c);stroke-width:2;vector-effect:non-scaling-stroke;
stroke-linejoin:round}
.plot path.faint{stroke-width:1;opacity:.32}
.plot path.points{stroke-width:7;stroke-linecap:round}
.plot path.grid{stroke:var(--grid);stroke-width:1}
.plot path.level{stroke:var(--soft);stroke-width:1.25;stroke-dasharray:5 4}
.plot span{position:absolute;pointer-events:none;font-size:12px;line-height:1;color:var(--soft);
white-space:nowrap;
font-variant-numeric:tabular-nums}
.plot .y{right:100%;margin-right:8px;transform:translateY(-50%)}
.plot .x{top:100%;margin-top:9px;transform:translateX(-50%)}
.plot .x.first{transform:none}
.plot .x.last{transform:translateX(-100%)}
.plot .name{right:2px;transform:translateY(5px);background:var(--card);padding:1px 3px;
border-radius:3px}
.strip{position:absolute;top:0;bottom:0;font-style:normal}
.strip b{display:none;position:absolute;z-index:5;top:4px;left:100%;margin-left:6px;
padding:7px 10px;
border-radius:8px;background:var(--note);color:var(--note-ink);font:12.5px/1.5 system-ui,sans-serif;
white-space:nowrap;pointer-events:none;font-variant-numeric:tabular-nums}
.strip.end b{left:auto;right:100%;margin:0 6px 0 0}
.strip:hover{background:linear-gradient(var(--soft),var(--soft)) center/1px 100% no-repeat}
.strip:hover b{display:block}
.mark{position:absolute;z-index:4;top:-6px;bottom:0;width:11px;margin-left:-5px;
background:repeating-linear-gradient(var(--s5) 0 4px,transparent 4px 8px) center/1px 100% no-repeat}
.mark::before{content:"";display:block;margin:0 auto;width:9px;height:9px;border-radius:50%;
background:var(--s5)}
.map{position:relative;overflow:visible}
.map path{fill:var(--c);shape-rendering:crispEdges}
.map svg{border-radius:4px}
.span{margin:6px 0 0}
.heat-legend{gap:0;margin:14px 0 8px}
.heat-legend li{border-top:12px solid var(--c);padding:2px 4px 0 0;width:44px;color:var(--soft);
font-size:12px}
.views>input{position:absolute;opacity:0}
.views>label{display:inline-block;padding:3px 12px;margin:0 4px 8px 0;border:1px solid var(--line);
border-radius:99px;font-size:13px;cursor:pointer;color:var(--soft)}
.views>input:checked+label{background:var(--accent);border-color:var(--accent);color:var(--card)}
.views>input:focus-visible+label{outline:2px solid var(--s2);outline-offset:2px}
.views>figure{display:none}
.views>input:nth-of-type(1):checked~figure:nth-of-type(1),
.views>input:nth-of-type(2):checked~figure:nth-of-type(2){display:block}
.scroll{overflow:auto;max-height:26rem;background:var(--card);border:1px solid var(--line);
border-radius:12px;
margin:0 0 16px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:7px 14px;border-bottom:1px solid var(--line);vertical-align:top}
tbody tr:last-child>*{border-bottom:0}
thead th{position:sticky;top:0;background:var(--card);color:var(--soft);font-weight:600;
white-space:nowrap}
.num{text-align:right;white-space:nowrap}.num:first-child{width:1%}
tfoot td{font-weight:650;border-top:2px solid var(--line);border-bottom:0}
td s{display:inline-block;width:10px;height:10px;border-radius:3px;background:var(--c);
margin-right:8px}
.bar{display:flex;height:20px;border-radius:5px;overflow:hidden;margin:2px 0 12px;
background:var(--grid)}
.bar i{background:var(--c);border-right:1px solid var(--card)}
.bar-name{font-size:13px;color:var(--soft);margin:0}
.prose .text{white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 6px;
font-family:Charter,"Iowan Old Style",Georgia,"Liberation Serif",serif;font-size:16px}
.chat{display:flex;flex-direction:column}
.user,.assistant{padding:9px 14px;border-radius:16px;max-width:88%;white-space:pre-wrap;
overflow-wrap:anywhere;
margin:0 0 8px}
.user{align-self:flex-end;background:var(--user);color:var(--user-ink);
border-bottom-right-radius:4px}
.assistant{align-self:flex-start;background:var(--answer);border-bottom-left-radius:4px;
width:fit-content}
.when{margin:0}
bdi{unicode-bidi:isolate}
details{margin-top:10px}
.prose details .text,details .assistant{margin-top:12px}
summary{cursor:pointer;color:var(--accent);font-size:14px}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 14px;
overflow-x:auto;
margin:0 0 12px}
.parts{max-height:none}.parts td:first-child{white-space:nowrap}.parts th{white-space:normal}
.recipe td:first-child{white-space:nowrap;color:var(--soft)}
.steps{padding-left:22px}
.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}.s5{--c:var(--s5)}
.s6{--c:var(--s6)}
.s7{--c:var(--s7)}.h0{--c:var(--h0)}.h1{--c:var(--h1)}.h2{--c:var(--h2)}.h3{--c:var(--h3)}
.h4{--c:var(--h4)}
.h5{--c:var(--h5)}.h6{--c:var(--h6)}.h7{--c:var(--h7)}.h8{--c:var(--h8)}.h9{--c:var(--h9)}
@media (max-width:600px){body{padding:0 12px 48px}header{padding-top:24px}.card{padding:13px 12px}
.plot{margin-left:40px}.plot.tall{height:260px}.figures{grid-template-columns:1fr 1fr;gap:8px}
.figures .value{font-size:20px}table{font-size:13px}th,td{padding:7px 8px}
.heat-legend li{width:auto;flex:1;
padding:2px 0 0}}
@media print{nav{display:none}body{background:#fff}.scroll{max-height:none;overflow:visible}}
"""
