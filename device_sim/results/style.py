"""The style sheet of the HTML report: one light and one dark set of colours, and paper.

The colours of lines differ in lightness as well as in hue, so that they can be told apart without
seeing hue. Class names of the drawings are those of plot.py.
"""

from typing import Final

STYLE: Final = """
:root {
  --page: #f7f8fa; --card: #ffffff; --ink: #1b1f27; --soft: #5d6675; --rule: #e3e6eb;
  --one: #1f5fd0; --two: #e07b00; --three: #0f8a6d; --four: #8e44ad;
  --good: #157f4b; --bad: #c62f2f; --off: #a66300; --stage: #dfe7f5; --stage-other: #eceff4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --card: #1c2027; --ink: #e6e9ee; --soft: #98a2b3; --rule: #2d333d;
    --one: #6ea3ff; --two: #ffad4d; --three: #4fd1ac; --four: #c792ea;
    --good: #3fbf7f; --bad: #ff6b6b; --off: #f0b456; --stage: #2b3850; --stage-other: #262c36;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 1040px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 22px; margin: 0 0 2px; }
h2 { font-size: 16px; margin: 0 0 10px; }
header p { margin: 0; color: var(--soft); overflow-wrap: anywhere; }
section {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 16px 18px; margin-top: 18px; overflow-x: auto;
}
.verdict { border-left: 6px solid var(--off); font-weight: 600; overflow-wrap: anywhere; }
.verdict.good { border-left-color: var(--good); }
.verdict.bad { border-left-color: var(--bad); }
.verdict ul { margin: 8px 0 0; padding-left: 20px; font-weight: 400; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin-top: 18px; }
@media (max-width: 700px) { .tiles { grid-template-columns: repeat(2, 1fr); } }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 10px 14px; }
.tile b { display: block; font-size: 21px; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.tile.bad b { color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.words, th.words { text-align: left; white-space: normal; }
td.wrong { color: var(--bad); font-weight: 650; }
tr:last-child td { border-bottom: 0; }
.pairs { columns: 2; column-gap: 40px; margin: 0; }
.pairs div { break-inside: avoid; display: flex; gap: 12px; justify-content: space-between;
  border-bottom: 1px solid var(--rule); padding: 3px 0; }
.pairs dt { color: var(--soft); }
.pairs dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
details { margin-top: 8px; }
summary { cursor: pointer; color: var(--soft); }
pre { margin: 6px 0 0; font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace;
  overflow-x: auto; }
@media (max-width: 700px) { .pairs { columns: 1; } }
p.note { color: var(--soft); margin: 8px 0 0; }
svg { display: block; width: 100%; min-width: 640px; height: auto; }
svg + svg { margin-top: 18px; }
svg text { fill: var(--soft); font-size: 12px; }
svg text.title { fill: var(--ink); font-weight: 600; font-size: 13px; }
svg text.lane { fill: var(--ink); }
svg text.fault-number { fill: var(--bad); font-size: 11px; font-weight: 600; }
svg .axis { stroke: var(--soft); }
svg .grid { stroke: var(--rule); }
svg path { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .line-0 { stroke: var(--one); } svg .line-1 { stroke: var(--two); }
svg .line-2 { stroke: var(--three); } svg .line-3 { stroke: var(--four); }
svg .dot-0, svg .key-0 { fill: var(--one); } svg .dot-1, svg .key-1 { fill: var(--two); }
svg .dot-2, svg .key-2 { fill: var(--three); } svg .dot-3, svg .key-3 { fill: var(--four); }
svg .fault-line { stroke: var(--bad); stroke-dasharray: 3 3; opacity: .7; }
svg .fault-band { fill: var(--bad); opacity: .09; }
svg .fault-bar { fill: var(--bad); opacity: .75; }
svg .stage { fill: var(--stage); } svg .stage-1 { fill: var(--stage-other); }
svg .pointer { fill: transparent; } svg .pointer:hover { fill: var(--soft); opacity: .12; }
@media print {
  body { background: #fff; font-size: 12px; }
  section, .tile { break-inside: avoid; }
}
"""
