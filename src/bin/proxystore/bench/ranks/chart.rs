//! A chart of one pattern: time and bandwidth by size, a line for each window and number of processes a node.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::Line;
use crate::failure::Failure;

/// The lines of one pattern as SVG.
pub(super) fn chart(lines: &[&Line]) -> Result<String, Failure> {
    let mut svg = String::new();
    draw(lines, &mut svg).map_err(|error| Failure::new(format_args!("the chart: {error}")))?;
    Ok(svg)
}

type Drawn<T> = Result<T, Box<dyn std::error::Error>>;

fn draw(lines: &[&Line], svg: &mut String) -> Drawn<()> {
    let area = SVGBackend::with_string(svg, (1200, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(600);
    let title = lines
        .first()
        .map(|line| format!("{} over {}: {} ranks on {} nodes", line.pattern, line.connector, line.ranks, line.nodes));
    let title = title.unwrap_or_default();
    panel(&left, lines, &title, "one object, median (us)", |line| line.p50_us)?;
    panel(&right, lines, "", "all receivers together (MB/s)", |line| line.mb_s)?;
    area.present()?;
    Ok(())
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    lines: &[&Line],
    title: &str,
    axis: &str,
    value: impl Fn(&Line) -> f64,
) -> Drawn<()> {
    // Logarithms need more than nothing, and a range more than a point.
    let range = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.map(|x| x.max(1e-3)).fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(x), b.max(x)));
        if low > high { 0.1..10.0 } else { low / 1.5..high * 1.5 }
    };
    let sizes = range(&mut lines.iter().map(|line| line.size as f64));
    let values = range(&mut lines.iter().map(|line| value(line)));
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(sizes.log_scale(), values.log_scale())?;
    chart.configure_mesh().x_desc("size (bytes)").y_desc(axis).x_label_formatter(&|x| short(*x)).draw()?;
    let mut kinds: Vec<(usize, usize)> = lines.iter().map(|line| (line.ppn, line.window)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for (at, (ppn, window)) in kinds.into_iter().enumerate() {
        let color = Palette99::pick(at).to_rgba();
        let of_kind = lines.iter().filter(|line| (line.ppn, line.window) == (ppn, window));
        let points: Vec<(f64, f64)> = of_kind.map(|line| (line.size as f64, value(line).max(1e-3))).collect();
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, color.filled())))?;
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(format!("{ppn} a node, window {window}"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// `64K` for 65536.
fn short(bytes: f64) -> String {
    match bytes {
        b if b >= 1073741824.0 => format!("{:.0}G", b / 1073741824.0),
        b if b >= 1048576.0 => format!("{:.0}M", b / 1048576.0),
        b if b >= 1024.0 => format!("{:.0}K", b / 1024.0),
        b => format!("{b:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(ppn: usize, size: usize, mb_s: f64) -> Line {
        let connector = "tcp".to_owned();
        let (p50_us, p99_us, ref_p50_us, ref_mb_s) = (50.0, 90.0, 40.0, mb_s);
        let (pattern, nodes, ranks, window) = ("pairs", 2, 4, 1);
        Line { connector, pattern, nodes, ranks, ppn, window, size, p50_us, p99_us, mb_s, ref_p50_us, ref_mb_s }
    }

    #[test]
    fn every_line_is_drawn() {
        let lines = [line(1, 8, 0.2), line(1, 1 << 20, 4000.0), line(2, 8, 0.4), line(2, 1 << 20, 5000.0)];
        let svg = chart(&lines.iter().collect::<Vec<_>>()).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["pairs over tcp: 4 ranks on 2 nodes", "1 a node, window 1", "2 a node, window 1", "(MB/s)"] {
            assert!(svg.contains(text), "{text}");
        }
        // Two panels, four points each.
        assert_eq!(svg.matches("<circle").count(), 8);
    }

    #[test]
    fn one_point_and_nothing_are_charts_too() {
        assert!(chart(&[&line(1, 8, 0.0)]).is_ok());
        assert!(chart(&[]).is_ok());
    }
}
