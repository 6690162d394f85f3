//! The Lifeguard paper's table of false positives beside ours: every arm over the grid of interval runs, as text, CSV and
//! a plot.
//!
//! The paper's figures are shares of what plain SWIM does in the same runs (Dadgar, Phillips, Currey 2018, alpha 5,
//! beta 6). How few are left depends on how fast a member drains its input after an anomaly, which the paper does not
//! tell, so what is held is the order of the arms ([`order`]).

use std::fmt::Write;

use highwater::control::swim::Extensions;

use crate::runs::IntervalRun;

pub struct Arm {
    pub name: &'static str,
    /// `None`: the foca crate.
    pub extensions: Option<Extensions>,
    /// Whether a blocked member's timers stand still with it.
    pub stands_still: bool,
    /// The paper's false positives in all and at healthy members, messages and bytes, in percent of SWIM's.
    paper: Option<[f64; 4]>,
}

/// The arms of the paper in its order, then what is beyond it.
pub fn arms() -> [Arm; 10] {
    let swim = Extensions::SWIM;
    let arm =
        |name, extensions, paper| Arm { name, extensions: Some(extensions), stands_still: false, paper };
    [
        arm("SWIM", swim, Some([100.0; 4])),
        // Messages and bytes are told for Lifeguard as a whole.
        arm("LHA-Probe", Extensions { local_health: true, ..swim }, Some([67.7, 32.9, f64::NAN, f64::NAN])),
        arm(
            "LHA-Suspicion",
            Extensions { dynamic_suspicion: true, ..swim },
            Some([3.0, 6.7, f64::NAN, f64::NAN]),
        ),
        arm("Buddy", Extensions { buddy: true, ..swim }, Some([94.1, 44.6, f64::NAN, f64::NAN])),
        arm("Lifeguard", Extensions::LIFEGUARD, Some([1.53, 1.89, 110.6, 98.0])),
        arm("Highwater", Extensions::ALL, None),
        Arm { name: "foca 2.0", extensions: None, stands_still: false, paper: None },
        Arm { stands_still: true, ..arm("Lifeguard, still", Extensions::LIFEGUARD, None) },
        Arm { stands_still: true, ..arm("Highwater, still", Extensions::ALL, None) },
        Arm { name: "foca 2.0, still", extensions: None, stands_still: true, paper: None },
    ]
}

/// The sums of one arm over all its runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    pub runs: u64,
    pub at_origin: u64,
    pub any: u64,
    pub at_healthy: u64,
    pub datagrams: u64,
    pub bytes: u64,
}

impl Sums {
    pub fn of(runs: &[IntervalRun]) -> Self {
        let mut sums = Self { runs: runs.len() as u64, ..Self::default() };
        for run in runs {
            sums.at_origin += run.wrong.at_origin as u64;
            sums.any += run.wrong.any as u64;
            sums.at_healthy += run.wrong.at_healthy as u64;
            sums.datagrams += run.datagrams;
            sums.bytes += run.bytes;
        }
        sums
    }

    fn shares(&self, of: &Self) -> [f64; 4] {
        let share = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        [
            share(self.any, of.any),
            share(self.at_healthy, of.at_healthy),
            share(self.datagrams, of.datagrams),
            share(self.bytes, of.bytes),
        ]
    }
}

/// A table row by row: an arm, its sums, its shares of SWIM's and the paper's.
pub fn text(rows: &[(Arm, Sums)]) -> String {
    let swim = rows[0].1;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:17} {:>12} {:>12} {:>12} {:>24} {:>24} {:>18} {:>18}",
        "arm",
        "at origin",
        "false deaths",
        "at healthy",
        "% of SWIM (paper)",
        "at healthy (paper)",
        "messages (paper)",
        "bytes (paper)"
    );
    for (arm, sums) in rows {
        let ours = sums.shares(&swim);
        let paper = arm.paper.unwrap_or([f64::NAN; 4]);
        let cell = |i: usize| {
            let paper = if paper[i].is_nan() { "-".to_owned() } else { format!("{}", paper[i]) };
            format!("{:.2} ({paper})", ours[i])
        };
        let _ = writeln!(
            out,
            "{:17} {:>12} {:>12} {:>12} {:>24} {:>24} {:>18} {:>18}",
            arm.name,
            sums.at_origin,
            sums.any,
            sums.at_healthy,
            cell(0),
            cell(1),
            cell(2),
            cell(3)
        );
    }
    out
}

pub fn csv(rows: &[(Arm, Sums)]) -> String {
    let swim = rows[0].1;
    let mut out = String::from(
        "arm,runs,at_origin,false_deaths,at_healthy,datagrams,bytes,percent_of_swim,percent_at_healthy,percent_messages,\
         percent_bytes,paper_percent,paper_at_healthy,paper_messages,paper_bytes\n",
    );
    for (arm, s) in rows {
        let paper = arm.paper.unwrap_or([f64::NAN; 4]);
        let number = |x: &f64| if x.is_nan() { String::new() } else { format!("{x:.3}") };
        let numbers: Vec<String> = s.shares(&swim).iter().chain(&paper).map(number).collect();
        let _ = writeln!(
            out,
            "{},{},{},{},{},{},{},{}",
            arm.name,
            s.runs,
            s.at_origin,
            s.any,
            s.at_healthy,
            s.datagrams,
            s.bytes,
            numbers.join(",")
        );
    }
    out
}

/// Shares below this are drawn as this: a logarithmic axis has no place for nothing.
const LEAST_PERCENT: f64 = 0.01;
const BAR: f64 = 14.0;
const ROW: f64 = 44.0;
const LEFT: f64 = 120.0;
const DECADE: f64 = 90.0;

/// Bars of false positives in percent of SWIM's, ours above the paper's, on a logarithmic axis.
pub fn svg(rows: &[(Arm, Sums)]) -> String {
    let swim = rows[0].1;
    // From the least share to a thousand percent.
    let width = |percent: f64| (percent.max(LEAST_PERCENT) / LEAST_PERCENT).log10() * DECADE;
    let (height, across) = (60.0 + ROW * rows.len() as f64, LEFT + 5.0 * DECADE + 90.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{across}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"18\">False deaths \
         in the interval runs, percent of SWIM's: measured (blue), the Lifeguard paper's (grey)</text>\n"
    );
    for (decade, label) in ["0.01", "0.1", "1", "10", "100", "1000"].iter().enumerate() {
        let x = LEFT + DECADE * decade as f64;
        let end = height - 24.0;
        let _ = writeln!(
            out,
            "<line x1=\"{x}\" y1=\"28\" x2=\"{x}\" y2=\"{end}\" stroke=\"#ddd\"/><text x=\"{x}\" y=\"{}\" \
             text-anchor=\"middle\">{label} %</text>",
            height - 8.0
        );
    }
    for (row, (arm, sums)) in rows.iter().enumerate() {
        let y = 36.0 + ROW * row as f64;
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + BAR,
            arm.name
        );
        let ours = sums.shares(&swim)[0];
        let paper = arm.paper.map(|paper| paper[0]);
        for (at, color, share) in [(0.0, "#2b6cb0", Some(ours)), (BAR + 2.0, "#a0aec0", paper)] {
            let Some(share) = share.filter(|share| share.is_finite()) else { continue };
            let (y, width) = (y + at, width(share));
            let _ = writeln!(
                out,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{color}\"/><text x=\"{:.1}\" \
                 y=\"{:.1}\">{share:.2} %</text>",
                LEFT + width + 4.0,
                y + BAR - 2.5
            );
        }
    }
    out.push_str("</svg>\n");
    out
}

/// The order that has to hold whatever the drain rate: each extension of the paper helps, together they help most, and
/// what is beyond them is no worse.
///
/// # Errors
/// Which arm stands where it should not.
pub fn order(rows: &[(Arm, Sums)]) -> Result<(), String> {
    let deaths = |name: &str| {
        let row = rows.iter().find(|(arm, _)| arm.name == name);
        row.map(|(_, sums)| sums.any).expect("the arm is one of those that ran")
    };
    let below = [
        ("LHA-Probe", "SWIM"),
        ("LHA-Suspicion", "LHA-Probe"),
        ("Lifeguard", "LHA-Suspicion"),
        ("Highwater", "Lifeguard"),
    ];
    for (less, more) in below {
        let (few, many) = (deaths(less), deaths(more));
        // Nothing is left of either at the end of the order.
        if few > many || (few == many && many > 0) {
            return Err(format!(
                "{less} has {few} false deaths, {more} has {many}: the order of the arms does not hold"
            ));
        }
    }
    if deaths("SWIM") == 0 {
        return Err("SWIM has no false death: these runs tell nothing".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(any: [u64; 10]) -> Vec<(Arm, Sums)> {
        let sums = any.map(|any| Sums { any, at_healthy: any, datagrams: 10, bytes: 10, ..Sums::default() });
        arms().into_iter().zip(sums).collect()
    }

    #[test]
    fn the_order_of_the_arms_is_held_and_a_wrong_one_is_named() {
        assert_eq!(order(&rows([1000, 700, 30, 900, 15, 0, 5000, 0, 0, 0])), Ok(()));
        assert_eq!(order(&rows([1000, 700, 30, 900, 0, 0, 5000, 0, 0, 0])), Ok(()));
        let wrong = order(&rows([1000, 700, 30, 900, 40, 0, 5000, 0, 0, 0])).unwrap_err();
        assert!(wrong.starts_with("Lifeguard has 40 false deaths"), "{wrong}");
        assert!(order(&rows([1000, 700, 30, 900, 15, 16, 5000, 0, 0, 0])).is_err());
        assert!(order(&rows([0; 10])).is_err(), "nothing was tried");
    }

    #[test]
    fn shares_stand_beside_the_papers_in_each_form() {
        let rows = rows([1000, 700, 30, 900, 15, 0, 5000, 0, 0, 0]);
        assert!(text(&rows).contains("1.50 (1.53)"), "{}", text(&rows));
        assert!(csv(&rows).lines().nth(5).unwrap().starts_with("Lifeguard,0,0,15,15,10,10,1.500,"));
        let plot = svg(&rows);
        assert_eq!(plot.matches("#2b6cb0").count(), 10);
        assert_eq!(plot.matches("#a0aec0").count(), 5);
        assert!(plot.trim_end().ends_with("</svg>"));
    }
}
