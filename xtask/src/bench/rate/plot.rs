//! The picture: what came in over time, and what was achieved of what was configured.

use super::{
    Results,
    side::{Limiter, SLICE},
};
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (900, 640);
/// Of the first picture.
const SHOWN_S: f64 = 3.0;

const fn color(limiter: Limiter) -> RGBColor {
    match limiter {
        Limiter::Egressd => RGBColor(0, 90, 181),
        Limiter::Tbf => RGBColor(220, 50, 32),
        Limiter::Htb => RGBColor(120, 120, 120),
    }
}

pub(super) fn write(results: &Results, path: &Path) -> Result<()> {
    draw(results, path).map_err(|error| anyhow!("{}: {error}", path.display()))
}

fn draw(results: &Results, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(SIZE.1 / 2);
    let most = results.slices.values().flatten().copied().fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(&upper)
        .caption(format!("One TCP flow, {} Mbit/s configured", results.shown_mbit), ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..SHOWN_S, 0.0..most * 1.1)?;
    chart.configure_mesh().x_desc("seconds").y_desc("Mbit/s, 50 ms each").draw()?;
    for (limiter, slices) in &results.slices {
        let points = slices.iter().enumerate().map(|(index, mbit)| ((index as f64 + 0.5) * SLICE.as_secs_f64(), *mbit));
        let style = color(*limiter).stroke_width(2);
        chart
            .draw_series(LineSeries::new(points.filter(|(at, _)| *at < SHOWN_S), style))?
            .label(limiter.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;

    let rows: Vec<_> = results.rows().collect();
    let mut chart = ChartBuilder::on(&lower)
        .caption("Achieved to configured", ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..rows.len() as f64, 0.85..1.1)?;
    let label = |at: &f64| {
        let mut named = rows.iter().enumerate().filter(|(index, _)| (*index as f64 - at).abs() < 0.01);
        named.next().map(|(_, row)| row.name()).unwrap_or_default()
    };
    chart.configure_mesh().disable_x_mesh().x_labels(rows.len()).x_label_formatter(&label).draw()?;
    for (index, row) in rows.iter().enumerate() {
        for (beside, limiter) in Limiter::ALL.into_iter().enumerate() {
            let Some(ratio) = results.ratios.median(*row, limiter) else { continue };
            let at = (index as f64 + 0.3 + beside as f64 * 0.2, ratio.clamp(0.85, 1.1));
            chart.draw_series([Circle::new(at, 4, color(limiter).filled())])?;
        }
    }
    root.present()?;
    Ok(())
}
