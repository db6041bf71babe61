"""The page's style sheet: system fonts, one column, colours of ``style.py`` for light and for dark; phones, paper.

Seen in Chromium at 1280 and 400 pixels, light, dark and printed on A4, with 2 to 24 models and 1 to 10 runs.
"""

from __future__ import annotations

from s3prl_ekd.report.style import DARK, LIGHT, Theme


def _colours(theme: Theme) -> str:
    return (
        f"--page:{theme.page};--card:{theme.card};--text:{theme.text};--muted:{theme.muted};"
        f"--grid:{theme.grid};--accent:{theme.accent}"
    )


STYLESHEET = (
    f":root{{color-scheme:light dark;{_colours(LIGHT)}}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_colours(DARK)}}}}}"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);
 font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","DejaVu Sans",sans-serif;
 font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
main{max-width:980px;margin:0 auto;padding:40px 20px 72px}
h1{font-size:1.75rem;line-height:1.2;letter-spacing:-.015em;margin:0}
h2{font-size:1.05rem;margin:0 0 14px;letter-spacing:-.005em}
.sub{color:var(--muted);margin:6px 0 0}
.notes{margin:16px 0 0;padding:10px 14px 10px 30px;border-left:3px solid var(--accent);background:var(--card);
 border-radius:0 8px 8px 0}
.facts{display:flex;flex-wrap:wrap;gap:12px 40px;margin:24px 0 28px}
.facts b{display:block;font-size:1.3rem;line-height:1.3;font-weight:650}
.facts span{color:var(--muted);font-size:.85rem}
section{background:var(--card);border:1px solid var(--grid);border-radius:12px;padding:20px 22px;margin:0 0 18px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%}
.scores th,.scores td{padding:9px 10px;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap;
 vertical-align:top}
.scores tbody tr:last-child>*{border-bottom:0}
.scores thead th{color:var(--muted);font-weight:500;font-size:.86rem}
.scores th:first-child{text-align:left;padding-left:0;font-weight:600;white-space:normal;min-width:11rem;
 max-width:19rem;overflow-wrap:break-word}
.scores :is(th,td):first-child{position:sticky;left:0;background:var(--card)}
.plainer thead th{white-space:normal;min-width:7.5rem;vertical-align:bottom}
.scores th:last-child,.scores td:last-child{padding-right:2px}
.scores small{display:block;color:var(--muted);font-weight:400;font-size:.78rem}
.scores .best{font-weight:700;color:var(--accent)}
.scores .worse{font-weight:700}
.differences :is(th,td):nth-child(2){text-align:left}
.scores .size{color:var(--muted)}
.scores .picked{font-weight:700;color:var(--accent)}
.scores .picked::before{content:"";display:inline-block;width:.42em;height:.42em;border-radius:50%;
 background:var(--accent);margin-right:.45em;vertical-align:.12em}
.grid th:first-child{font-weight:500}
.grid th,.grid td{padding:6px 12px}
.grid .test,.grid thead th:last-child{border-left:1px solid var(--grid)}
.plainer td{color:var(--muted);font-size:.9rem}
h3{font-size:.92rem;font-weight:600;margin:18px 0 4px}
.others{color:var(--muted)}
.others th:first-child{font-weight:500}
.plain{width:auto;font-size:.9rem}
.plain th{text-align:left;color:var(--muted);font-weight:500;padding:2px 24px 2px 0;vertical-align:top}
.note{color:var(--muted);font-size:.86rem;margin:12px 0 0}
figure{margin:0 0 18px}
figure:last-child{margin-bottom:0}
img{display:block;max-width:100%;height:auto}
img.dark{display:none}
@media screen and (prefers-color-scheme:dark){img.light{display:none}img.dark{display:block}}
figcaption{color:var(--muted);font-size:.84rem;margin-top:6px}
details{border-top:1px solid var(--grid);padding:9px 0}
details:first-of-type{border-top:0}
.plain+details{margin-top:10px}
summary{cursor:pointer;font-size:.92rem}
pre{white-space:pre-wrap;font:.78rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
 background:var(--page);border-radius:8px;padding:12px 14px;margin:10px 0 4px}
@media screen and (max-width:700px){
 main{padding:24px 10px 48px}
 section{padding:16px 14px}
 .scores{font-size:.88rem}
 .scores th:first-child{min-width:6rem;max-width:9rem}
 figure img{width:44rem;max-width:none}
}
@media print{
 @page{margin:14mm}
 details:not([open]),section:not(:has(>:not(h2,details:not([open])))){display:none}
 :root{font-size:11px;color-scheme:light}
 body{background:none}
 main{max-width:none;padding:0}
 section{border:0;border-radius:0;padding:0;margin:0 0 22px}
 .scroll{overflow:visible}
 figure,tr{break-inside:avoid}
 h2,h3,summary{break-after:avoid}
 .scores th,.scores td{padding:4px 6px}
 .scores :is(th,td):first-child{position:static}
 .picked::before{print-color-adjust:exact}
}
"""
)
