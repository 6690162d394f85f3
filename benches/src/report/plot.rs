//! Line charts as inline SVG: axes, grid, lines. Colors are CSS classes of the page; the page's script reads the points
//! from the same series to show values under the pointer.

use std::fmt::Write;

const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;

/// One line of a chart.
pub struct Series {
    pub name: String,
    /// CSS color class: `c0` to `c5`.
    pub class: String,
    /// In the axes' units, x ascending.
    pub points: Vec<(f64, f64)>,
    pub is_dashed: bool,
    /// Fill under the line.
    pub is_area: bool,
}

/// A labelled place on an axis.
pub struct Tick {
    pub at: f64,
    pub label: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Linear,
    Log,
}

pub struct Chart {
    pub id: String,
    /// Of the drawing, which scales with the page.
    pub width: f64,
    pub height: f64,
    pub x_title: String,
    pub x_ticks: Vec<Tick>,
    pub x_range: (f64, f64),
    pub y_title: String,
    pub y_scale: Scale,
    /// How the script writes values: `us`, `count` or `bytes`.
    pub y_unit: &'static str,
    /// And places on the x axis: `quantile` or `seconds`.
    pub x_unit: &'static str,
    pub series: Vec<Series>,
}

impl Chart {
    pub fn svg(&self) -> String {
        let y = self.y_axis();
        let right = self.width - RIGHT;
        let bottom = self.height - BOTTOM;
        let mut out = String::new();
        let _ = write!(
            out,
            r#"<svg class="chart" id="{}" viewBox="0 0 {} {}" role="img" aria-label="{} over {}">"#,
            self.id,
            self.width,
            self.height,
            escape(&self.y_title),
            escape(&self.x_title)
        );
        for tick in &y.ticks {
            let at = self.y_at(&y, tick.at);
            let _ = write!(
                out,
                r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1}" y2="{at:.1}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                LEFT - 10.0,
                at + 4.0,
                escape(&tick.label)
            );
        }
        for tick in &self.x_ticks {
            let at = self.x_at(tick.at);
            let _ = write!(
                out,
                r#"<line class="grid faint" x1="{at:.1}" x2="{at:.1}" y1="{TOP}" y2="{bottom}"/><text class="tick" x="{at:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                bottom + 18.0,
                escape(&tick.label)
            );
        }
        let _ = write!(
            out,
            r#"<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/><text class="title" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            right,
            self.height - 6.0,
            escape(&self.x_title)
        );
        for series in &self.series {
            self.draw(&mut out, &y, series, bottom);
        }
        let _ = write!(
            out,
            r#"<g class="probe" visibility="hidden"><line class="cursor" y1="{TOP}" y2="{bottom}" x1="0" x2="0"/></g><rect class="glass" x="{LEFT}" y="{TOP}" width="{:.1}" height="{:.1}"/></svg>"#,
            right - LEFT,
            bottom - TOP
        );
        out
    }

    fn draw(&self, out: &mut String, y: &YAxis, series: &Series, bottom: f64) {
        let mut path = String::new();
        for (i, (px, py)) in series.points.iter().enumerate() {
            let command = if i == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", self.x_at(*px), self.y_at(y, *py));
        }
        let (Some(first), Some(last)) = (series.points.first(), series.points.last()) else { return };
        if series.is_area {
            let (from, to) = (self.x_at(first.0), self.x_at(last.0));
            let _ = write!(
                out,
                r#"<path class="area {}" d="{path}L{to:.1} {bottom}L{from:.1} {bottom}Z"/>"#,
                series.class
            );
        }
        let dash = if series.is_dashed { " dashed" } else { "" };
        let _ = write!(out, r#"<path class="line {}{dash}" d="{path}"/>"#, series.class);
        if series.points.len() == 1 {
            let (cx, cy) = (self.x_at(first.0), self.y_at(y, first.1));
            let _ = write!(out, r#"<circle class="dot {}" cx="{cx:.1}" cy="{cy:.1}" r="4"/>"#, series.class);
        }
    }

    /// What the page's script needs to find the value under the pointer.
    pub fn script_data(&self) -> serde_json::Value {
        let y = self.y_axis();
        let series: Vec<_> = self
            .series
            .iter()
            .map(|series| {
                let points: Vec<_> = series
                    .points
                    .iter()
                    .map(|(px, py)| {
                        let round = |v: f64, by: f64| (v * by).round() / by;
                        [
                            round(self.x_at(*px), 10.0),
                            round(self.y_at(&y, *py), 10.0),
                            round(*px, 1e4),
                            round(*py, 1e2),
                        ]
                    })
                    .collect();
                serde_json::json!({ "name": series.name, "class": series.class, "points": points })
            })
            .collect();
        serde_json::json!({ "id": self.id, "x": self.x_unit, "y": self.y_unit, "series": series })
    }

    fn x_at(&self, x: f64) -> f64 {
        let (from, to) = self.x_range;
        LEFT + (x - from) / (to - from).max(1e-12) * (self.width - RIGHT - LEFT)
    }

    fn y_at(&self, axis: &YAxis, y: f64) -> f64 {
        let share = match self.y_scale {
            Scale::Linear => y / axis.to,
            Scale::Log => (y.max(axis.from) / axis.from).ln() / (axis.to / axis.from).ln(),
        };
        self.height - BOTTOM - share.clamp(0.0, 1.0) * (self.height - BOTTOM - TOP)
    }

    fn y_axis(&self) -> YAxis {
        let values =
            || self.series.iter().flat_map(|series| &series.points).map(|(_, y)| *y).filter(|y| *y > 0.0);
        let max = values().fold(0.0, f64::max).max(1e-3);
        let min = values().fold(f64::INFINITY, f64::min).min(max);
        match self.y_scale {
            Scale::Linear => {
                let step = nice_step(max / 5.0);
                let count = (max / step * 1.02).ceil().max(1.0);
                let ticks = (0..=count as usize).map(|i| self.y_tick(i as f64 * step)).collect();
                YAxis { from: 0.0, to: count * step, ticks }
            }
            Scale::Log => {
                // Steps of 1, 2 and 5 in each power of ten, from just below the least to just above the largest.
                let ladder: Vec<f64> = (-3..=10)
                    .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)))
                    .collect();
                let from = ladder.iter().copied().filter(|v| *v <= min * 0.98).fold(ladder[0], f64::max);
                let to = ladder.iter().copied().filter(|v| *v >= max * 1.02).fold(f64::INFINITY, f64::min);
                let to = if to.is_finite() { to } else { max * 1.1 };
                let many = (to / from).log10() > 3.2;
                let is_shown = |v: &f64| {
                    let is_decade = (v.log10() - v.log10().round()).abs() < 1e-9;
                    *v >= from * 0.999 && *v <= to * 1.001 && (!many || is_decade)
                };
                YAxis {
                    from,
                    to,
                    ticks: ladder.into_iter().filter(is_shown).map(|v| self.y_tick(v)).collect(),
                }
            }
        }
    }

    fn y_tick(&self, at: f64) -> Tick {
        let label = match self.y_unit {
            "us" => micros(at),
            "bytes" => si(at) + "B/s",
            _ => si(at).trim_end().to_owned(),
        };
        Tick { at, label }
    }
}

struct YAxis {
    from: f64,
    to: f64,
    ticks: Vec<Tick>,
}

/// 1, 2 or 5 times a power of ten, at least `least`.
pub fn nice_step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-9).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * power >= least * 0.999);
    step.unwrap_or(10.0) * power
}

/// `50 us`, `2 ms`, `1.5 s`: microseconds for people, without needless digits.
pub fn micros(us: f64) -> String {
    let (value, unit) = match us {
        _ if us <= 0.0 => return "0".to_owned(),
        _ if us < 1e3 => (us, "µs"),
        _ if us < 1e6 => (us / 1e3, "ms"),
        _ => (us / 1e6, "s"),
    };
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {unit}")
}

/// `1.2 M`, `50 k`, `7 `: decimal multiples.
pub fn si(value: f64) -> String {
    let (value, unit) = match value {
        v if v >= 1e9 => (v / 1e9, "G"),
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e3 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let text = format!("{value:.2}");
    format!("{} {unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>, y_scale: Scale) -> Chart {
        Chart {
            id: "a".into(),
            width: 800.0,
            height: 300.0,
            x_title: "x".into(),
            x_ticks: vec![Tick { at: 0.0, label: "<0>".into() }],
            x_range: (0.0, 10.0),
            y_title: "y".into(),
            y_scale,
            y_unit: "us",
            x_unit: "seconds",
            series: vec![Series {
                name: "s".into(),
                class: "c0".into(),
                points,
                is_dashed: false,
                is_area: true,
            }],
        }
    }

    #[test]
    fn steps_are_round_numbers() {
        assert_eq!([0.07, 1.0, 1.2, 33.0, 740.0].map(nice_step), [0.1, 1.0, 2.0, 50.0, 1000.0]);
        assert_eq!([50.0, 1500.0, 2_000_000.0].map(micros), ["50 µs", "1.5 ms", "2 s"]);
        assert_eq!(micros(100.0), "100 µs");
        assert_eq!(si(50_000.0), "50 k");
    }

    #[test]
    fn every_point_lies_inside_the_plot_on_both_scales() {
        for scale in [Scale::Linear, Scale::Log] {
            let chart = chart(vec![(0.0, 12.0), (5.0, 90_000.0), (10.0, 3.0)], scale);
            let axis = chart.y_axis();
            assert!(axis.ticks.len() >= 3 && axis.ticks.len() <= 16, "{} ticks", axis.ticks.len());
            for (x, y) in &chart.series[0].points {
                let at = (chart.x_at(*x), chart.y_at(&axis, *y));
                assert!(
                    (LEFT..=chart.width - RIGHT).contains(&at.0) && (TOP..=300.0 - BOTTOM).contains(&at.1),
                    "{at:?}"
                );
            }
        }
    }

    #[test]
    fn nothing_to_draw_and_odd_labels_still_give_valid_svg() {
        let svg = chart(Vec::new(), Scale::Log).svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>"));
        assert!(svg.contains("&lt;0&gt;") && !svg.contains("NaN"));
    }
}
