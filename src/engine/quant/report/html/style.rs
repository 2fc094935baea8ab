//! How the page looks: colours by variables, so that light and dark are two lists.

/// The style sheet.
pub const STYLE: &str = "
:root{color-scheme:light dark;--bg:#f5f6f8;--card:#fff;--ink:#17212c;--dim:#5f6c79;--line:#e2e6eb;--accent:#0b7285;--second:#7048e8;
--third:#d9730d;--good:#1d6b2d;--fair:#9a5200;--bad:#c92a2a;--track:#e9edf1;--kept:#0b728522;--tint-bad:#c92a2a12;--tint-fair:#e6770010;--on:#fff;--fade:#17212c1f}
@media screen and (prefers-color-scheme:dark){:root{--bg:#0f1419;--card:#171e26;--ink:#e6ebf0;--dim:#98a6b4;--line:#28323d;--accent:#3bc9db;
--second:#b197fc;--third:#ffa94d;--good:#69db7c;--fair:#ffc078;--bad:#ff8787;--track:#25303b;--kept:#3bc9db22;--tint-bad:#ff878714;--tint-fair:#ffc07810;--on:#0f1419;--fade:#000c}}
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;line-height:1.25;margin:0;letter-spacing:-.01em;overflow-wrap:anywhere}h2{font-size:18px;margin:44px 0 4px}
h3{font-size:14px;margin:0 0 8px}.sub{color:var(--dim);margin:0 0 12px;overflow-wrap:anywhere;max-width:78ch}.dim{color:var(--dim)}
.head{margin-bottom:14px;display:flex;gap:14px;align-items:flex-start;justify-content:space-between;flex-wrap:wrap}
.badge{border-radius:99px;padding:5px 14px;font-weight:600;color:var(--on);background:var(--good);white-space:nowrap}
.badge.bad{background:var(--bad)}.badge.none{background:var(--dim)}
.chip{display:inline-block;border-radius:6px;padding:0 8px;font-size:12px;font-weight:600;line-height:20px;background:var(--track);color:var(--dim);white-space:nowrap}
.chip.warning{background:var(--fair);color:var(--on)}.chip.error{background:var(--bad);color:var(--on)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:12px;margin-top:22px}
.card,.box{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 18px}
.card .k,.card .n{color:var(--dim);font-size:13px}.card .v{font-size:27px;font-weight:650;letter-spacing:-.02em;line-height:1.3}
.box+.box{margin-top:10px}.box p{margin:4px 0 0;overflow-wrap:anywhere}.box.warning{border-left:4px solid var(--fair)}.box.error,.fail{border-left:4px solid var(--bad)}
.box p,.fail{max-height:18em;overflow:auto}.row b{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:3;overflow:hidden}
.fail{background:var(--card);border-radius:12px;padding:14px 18px;margin-top:20px;border-top:1px solid var(--line);border-right:1px solid var(--line);border-bottom:1px solid var(--line);overflow-wrap:anywhere}
.fix{display:flex;flex-wrap:wrap;gap:6px;align-items:baseline;margin-top:8px}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,monospace;background:var(--track);padding:2px 7px;border-radius:5px;overflow-wrap:anywhere}
code.best{background:var(--kept);outline:1px solid var(--accent)}
b.name,td.name,.act b,.row b{font:600 12.5px/1.4 ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}td.name{font-weight:400;min-width:110px;max-width:340px}.of{display:block;color:var(--dim);font:12px/1.4 system-ui,sans-serif}
.wrap{border:1px solid var(--line);border-radius:12px;overflow-x:auto;background:linear-gradient(90deg,var(--card) 40%,transparent) 0/48px 100% no-repeat local,
linear-gradient(-90deg,var(--card) 40%,transparent) 100%/48px 100% no-repeat local,linear-gradient(90deg,var(--fade),transparent) 0/14px 100% no-repeat,
linear-gradient(-90deg,var(--fade),transparent) 100%/14px 100% no-repeat,var(--card)}
table{border-collapse:collapse;width:100%;font-size:14px}th,td{padding:7px 14px;text-align:left;border-top:1px solid var(--line);vertical-align:middle}
tr:first-child th{border-top:0}th{font-weight:600;color:var(--dim);font-size:12.5px;white-space:nowrap}
td.db{white-space:nowrap}td.db .bar{width:76px}:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:4px}td.r,th.r{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bar{display:inline-block;width:110px;height:8px;border-radius:4px;background:var(--track);overflow:hidden;vertical-align:middle;margin-right:9px}
.bar i{display:block;height:100%;border-radius:4px}td .n{white-space:nowrap;font-variant-numeric:tabular-nums}
.good{color:var(--good)}.fair{color:var(--fair)}.poor{color:var(--bad)}i.good{background:var(--good)}i.fair{background:var(--fair)}i.poor{background:var(--bad)}
i.one{background:var(--second)}i.two{background:var(--third)}
.notes{margin-top:16px}details{margin-top:12px}summary{cursor:pointer;color:var(--accent);font-size:14px;padding:4px 0}details>.wrap,details>.grid,details>.box{margin-top:8px}
.plot{position:relative;height:230px;margin:6px 6px 26px 44px}.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.plot.low{height:120px}.plot span{position:absolute;font-size:11.5px;color:var(--dim);font-variant-numeric:tabular-nums;white-space:nowrap}
.plot .y{right:calc(100% + 8px);transform:translateY(-50%)}.plot .x{top:calc(100% + 5px);transform:translateX(-50%)}
.plot .x:last-of-type{transform:translateX(-90%)}
.band{fill:none}.band.bad{fill:var(--tint-bad)}.band.fair{fill:var(--tint-fair)}
.rule,.line,.dot{fill:none;vector-effect:non-scaling-stroke}.rule{stroke:var(--line)}.line{stroke-width:2;stroke-linejoin:round;stroke:var(--accent)}
.line.faint{opacity:.35}.line.limit{stroke:var(--dim);stroke-width:1.5;stroke-dasharray:5 4}.dot{stroke-linecap:round;stroke-width:8;stroke:var(--accent)}.dot.good{stroke:var(--good)}.dot.poor{stroke:var(--bad)}
.dot.one{stroke:var(--second);stroke-width:6}.dot.two{stroke:var(--third);stroke-width:6}.dot.ring{stroke:var(--card);stroke-width:4}.dot.chosen{stroke:var(--accent);stroke-width:18;opacity:.3}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;color:var(--dim);margin:0 0 10px}.key i{display:inline-block;width:10px;height:10px;border-radius:50%;margin-right:6px}
i.main{background:var(--accent)}i.hollow{background:none;border:2px solid var(--accent)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:12px}
.act{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 14px;min-width:0}
.act svg{display:block;width:100%;height:84px;margin:8px 0 2px}.act p{margin:0;color:var(--dim);font-size:12.5px}
.ends{display:flex;justify-content:space-between;font-size:11.5px;color:var(--dim);font-variant-numeric:tabular-nums;margin-bottom:4px}
.row{display:grid;grid-template-columns:minmax(70px,170px) minmax(0,1fr) 172px;gap:4px 14px;align-items:center;padding:5px 0;font-size:13.5px}
.row+.row{border-top:1px solid var(--line)}.row .num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.span{position:relative;height:16px;background:linear-gradient(var(--track),var(--track)) center/100% 2px no-repeat}
.span i{position:absolute;top:6px;height:4px;border-radius:2px;opacity:.4}.span u{position:absolute;top:2px;width:12px;height:12px;margin-left:-6px;border-radius:50%;background:var(--accent)}
.span s{position:absolute;top:0;width:3px;height:16px;margin-left:-1.5px;background:var(--ink)}.span.bad u{background:var(--bad)}.span.bad i{background:var(--bad)}.span i{background:var(--accent)}
.span em{position:absolute;top:-5px;height:26px;width:1px;background:var(--line)}.axis .span{background:none}
.axis em{height:auto;width:auto;background:none;top:0;transform:translateX(-50%);font:11.5px/16px system-ui,sans-serif;color:var(--dim);white-space:nowrap}
.pair{display:grid;gap:3px}.pair .bar{width:100%;margin:0}
.matrix{display:block;width:100%;max-width:560px;margin:4px auto}.matrix text{font:9px system-ui,sans-serif;fill:var(--ink);text-anchor:middle;dominant-baseline:central}
.matrix .k{fill:var(--dim)}.matrix rect{fill:var(--accent)}.matrix rect.off{fill:var(--bad)}
footer{margin-top:52px;color:var(--dim);font-size:12.5px;overflow-wrap:anywhere}
@media(max-width:700px){main{padding:20px 14px 48px}h1{font-size:22px}.wide{display:none}.bar{width:64px}td.db .bar{width:36px;margin-right:6px}td.name{min-width:96px}th,td{padding:7px 9px}.axis em:first-child{transform:none}.axis em:last-child{transform:translateX(-100%)}.plot{height:190px}
.cards{grid-template-columns:1fr 1fr;gap:10px}.card{padding:12px 13px}.card .v{font-size:21px}.row{grid-template-columns:1fr auto}.row .span,.row .pair{grid-column:1/-1;grid-row:2}.box{padding:12px 14px}}
@media print{:root{color-scheme:light}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}body{background:#fff}main{max-width:none;padding:0}
details::details-content{content-visibility:visible;block-size:auto}.card,.act,.row,.plot,.matrix,tr{break-inside:avoid}h2,h3,.sub,summary{break-after:avoid}.wrap{overflow:visible;background:none}.box p,.fail{max-height:none}}";

#[cfg(test)]
mod tests {
    use super::STYLE;

    /// The relative luminance of `#rrggbb` (WCAG 2.2).
    fn luminance(colour: &str) -> f64 {
        let digits = colour.trim_start_matches('#');
        let part = |i: usize| {
            let c = f64::from(u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap()) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * part(0) + 0.7152 * part(1) + 0.0722 * part(2)
    }

    #[test]
    fn words_in_colour_can_be_read() {
        for theme in STYLE.split(":root{").skip(1).take(2) {
            let colour = |name: &str| -> String {
                let (_, rest) = theme.split_once(&format!("--{name}:#")).unwrap();
                let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
                if digits.len() == 3 { digits.chars().flat_map(|c| [c, c]).collect() } else { digits }
            };
            // As text on what lies below, and below the text of badges.
            for word in ["good", "fair", "bad", "dim"] {
                for ground in ["card", "bg", "on"] {
                    let (a, b) = (luminance(&colour(word)), luminance(&colour(ground)));
                    let contrast = (a.max(b) + 0.05) / (a.min(b) + 0.05);
                    assert!(contrast >= 4.5, "{word} and {ground}: {contrast:.2}");
                }
            }
        }
    }
}
