"""The look of the report: neutral in light and dark, one column on a phone."""

CSS = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #ffffff; --ink: #1d2327; --soft: #5c6770; --line: #e2e4e6;
  --accent: #2f7dd1; --good: #1f8a5f; --bad: #b3372f; --wash: #f1f3f5; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1b1f23; --ink: #e3e6e8; --soft: #98a2ab;
  --line: #2d3338; --accent: #6aa9ee; --good: #4cc38a; --bad: #ef7a70; --wash: #22272c; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header { border-bottom: 1px solid var(--line); padding-bottom: 1.5rem; margin-bottom: 1.75rem; }
h1 { font-size: clamp(1.6rem, 4vw, 2.25rem); line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; letter-spacing: -0.01em; margin: 3rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.over { text-transform: uppercase; letter-spacing: .09em; font-size: .74rem; font-weight: 600; color: var(--soft);
  margin: 0 0 .6rem; }
.lead { font-size: 1.12rem; max-width: 48rem; }
.soft, figcaption, .note { color: var(--soft); font-size: .88rem; }
.pill { display: inline-block; padding: .08rem .6rem; border-radius: 1rem; font-size: .8rem; font-weight: 600;
  border: 1px solid currentColor; vertical-align: .25em; letter-spacing: 0; margin-left: .4rem; }
.pill.good { color: var(--good); } .pill.bad { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.6rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.tiles > div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .85rem 1rem; }
.tiles b { display: block; font-size: 1.55rem; font-weight: 650; letter-spacing: -0.02em; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tiles span { display: block; font-size: .82rem; color: var(--soft); line-height: 1.4; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.1rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem;
  margin: 1rem 0; }
figure { margin: 0; } figcaption { margin-top: .5rem; }
svg.plot { width: 100%; height: auto; display: block; } svg.plot text { font-family: inherit !important; }
.scroll { overflow-x: auto; margin: .8rem 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .82rem; white-space: nowrap; }
td:first-child { white-space: nowrap; }
th, td { padding: .42rem .9rem .42rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; }
td.n, th.n { text-align: right; padding-right: 1.4rem; white-space: nowrap; } tr.mine td { font-weight: 650; }
dl { display: grid; grid-template-columns: 9rem 1fr; margin: 0; font-size: .95rem; }
dt { color: var(--soft); font-weight: 600; font-size: .86rem; padding: .42rem 0; border-top: 1px solid var(--line); }
dd { margin: 0; padding: .36rem 0; border-top: 1px solid var(--line); }
dt:first-of-type, dd:first-of-type { border-top: 0; }
.grid { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem 1.6rem; }
.grid h3 { margin: .9rem 0 .2rem; }
.shots { display: grid; grid-template-columns: repeat(4, 1fr); gap: .35rem;
  align-content: start; }
svg.tile { width: 100%; height: auto; display: block; border-radius: .25rem; background: #000; }
svg.tile .mask { fill-opacity: .14; stroke-width: 1.4px; vector-effect: non-scaling-stroke; stroke-linejoin: round; }
#masks:not(:checked) ~ .grid .mask { display: none; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin: 0 .35em 0 .9em; }
ul.words { padding-left: 1.1rem; margin: .6rem 0; }
ul.words li { margin: .3rem 0; max-width: 46rem; font-size: .93rem; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); font-size: .92rem; }
pre { background: var(--wash); border-radius: .5rem; padding: .9rem 1rem; overflow-x: auto; font-size: .8rem;
  line-height: 1.45; }
footer { margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
@media (max-width: 40rem) { main { padding: 1.5rem 1rem 3rem; } .grid, dl { grid-template-columns: 1fr; }
  dt { padding-bottom: 0; } dd { border-top: 0; padding-top: 0; } .tiles { grid-template-columns: 1fr 1fr; } }
@media print { body { background: #fff; } .card, .tiles > div { break-inside: avoid; } }
"""
