//! Line charts as SVG and PNG, drawn the same on every machine: the font is part of the program.

use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use image::{Rgb, RgbImage};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::atomic::{Durability, replace};
use super::picture::write_png;
use axis::Axis;

mod axis;

/// Size of a chart, in the units of its layout (SVG pixels).
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 500.0;
/// The SVG's coordinates are whole numbers, so it is drawn that much larger and shown at its size.
const SVG_STEPS: u32 = 20;
/// Pixels of the PNG per unit of the layout.
const PNG_SCALE: u32 = 2;
/// The PNG is drawn that much larger, then averaged, since the drawing itself has hard edges.
const SUPERSAMPLING: u32 = 2;
/// Points of a series are marked up to this many.
const MOST_MARKED_POINTS: usize = 40;

/// In units of the font size.
const LETTERS_ABOVE_MIDDLE: f64 = 0.12;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(38, 43, 51);
const SOFT_INK: RGBColor = RGBColor(95, 103, 114);
const AXIS: RGBColor = RGBColor(150, 157, 166);
const GRID: RGBColor = RGBColor(228, 231, 235);
/// Told apart by colour-blind readers too (Okabe and Ito, *Color Universal Design*, 2008).
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// One curve of a [`Chart`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// What the legend says.
    pub name: String,
    /// `(x, y)`, joined in this order; a point that is not finite leaves a gap.
    pub points: Vec<(f64, f64)>,
}

/// A line chart.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chart {
    /// Stands above the chart.
    pub title: String,
    /// Stands below the x axis; say the unit.
    pub x_label: String,
    /// Stands beside the y axis; say the unit. With `%` in it the axis covers 0 to 100.
    pub y_label: String,
    /// The curves, in the order of the legend.
    pub series: Vec<Series>,
    /// Whether y is logarithmic, which its label then says; values of 0 and less leave a gap.
    pub log_y: bool,
    /// Places on the x axis with a name: a vertical line with the name beside it.
    pub marks: Vec<(f64, String)>,
}

impl Chart {
    /// Writes the chart as SVG, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_svg(&self, path: &Path) -> Result<()> {
        let mut text = String::new();
        let drawn = (WIDTH as u32 * SVG_STEPS, HEIGHT as u32 * SVG_STEPS);
        let root = SVGBackend::with_string(&mut text, drawn);
        self.draw(root.into_drawing_area(), f64::from(SVG_STEPS), Corners::Exact)
            .with_context(|| format!("drawing {}", path.display()))?;
        let text = text
            .replacen(&size(drawn.0, drawn.1), &size(WIDTH as u32, HEIGHT as u32), 1)
            .replace("<polyline ", "<polyline stroke-linejoin=\"round\" stroke-linecap=\"round\" ");
        replace(path, Durability::Unsynced, |out| Ok(out.write_all(text.as_bytes())?))
    }

    /// Writes the chart as PNG of 1600 x 1000 pixels, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_png(&self, path: &Path) -> Result<()> {
        let scale = PNG_SCALE * SUPERSAMPLING;
        let (width, height) = (WIDTH as u32 * scale, HEIGHT as u32 * scale);
        let mut pixels = vec![255; (width * height * 3) as usize];
        let root = BitMapBackend::with_buffer(&mut pixels, (width, height));
        self.draw(root.into_drawing_area(), f64::from(scale), Corners::Discs)
            .with_context(|| format!("drawing {}", path.display()))?;
        let large = RgbImage::from_raw(width, height, pixels).context("the buffer has its size")?;
        write_png(path, &averaged(&large, SUPERSAMPLING))
    }

    fn draw<DB: DrawingBackend>(
        &self,
        root: DrawingArea<DB, Shift>,
        scale: f64,
        corners: Corners,
    ) -> Result<()> {
        register_default_font()?;
        let mut canvas = Canvas { root, scale, corners };
        canvas.draw(self).map_err(|error| anyhow!("{error}"))
    }

    /// Each series as runs of points that can be drawn, y already logarithmic where it is.
    fn runs(&self) -> Vec<Vec<Vec<(f64, f64)>>> {
        let place = |&(x, y): &(f64, f64)| {
            let y = if self.log_y { y.log10() } else { y }; // of 0 and less: not finite
            (x.is_finite() && y.is_finite()).then_some((x, y))
        };
        let runs = |series: &Series| {
            let placed: Vec<_> = series.points.iter().map(place).collect();
            let runs = placed.split(Option::is_none).filter(|run| !run.is_empty());
            runs.map(|run| run.iter().flatten().copied().collect()).collect()
        };
        self.series.iter().map(runs).collect()
    }
}

fn size(width: u32, height: u32) -> String {
    format!("width=\"{width}\" height=\"{height}\"")
}

fn register_default_font() -> Result<()> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let done = REGISTERED.get_or_init(|| {
        register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).is_ok()
    });
    if *done { Ok(()) } else { Err(anyhow!("the built-in font is damaged")) }
}

/// The mean of each square of `factor` x `factor` pixels.
fn averaged(large: &RgbImage, factor: u32) -> RgbImage {
    RgbImage::from_fn(large.width() / factor, large.height() / factor, |x, y| {
        let mut sums = [0; 3];
        for (dx, dy) in (0..factor).flat_map(|dy| (0..factor).map(move |dx| (dx, dy))) {
            let pixel = large.get_pixel(x * factor + dx, y * factor + dy).0;
            sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += u32::from(value));
        }
        Rgb(sums.map(|sum| (sum as f64 / f64::from(factor * factor)).round() as u8))
    })
}

type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

/// A drawing surface measured in the units of the layout.
struct Canvas<DB: DrawingBackend> {
    root: DrawingArea<DB, Shift>,
    scale: f64,
    corners: Corners,
}

/// How the corners of a curve become round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Corners {
    /// By the viewer of the picture.
    Exact,
    /// By a disc on each: the bitmap's own corners have spikes.
    Discs,
}

/// The rectangle between the axes, and what its edges stand for.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Axis,
    y: Axis,
}

impl Frame {
    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let right = self.left + self.x.share(x) * (self.right - self.left);
        (right, self.bottom - self.y.share(y) * (self.bottom - self.top))
    }
}

/// Where a text hangs on its point.
#[derive(Clone, Copy)]
enum Anchor {
    Left,
    Middle,
    Right,
    /// Turned to run upwards, centred.
    Upwards,
}

impl<DB: DrawingBackend> Canvas<DB> {
    fn draw(&mut self, chart: &Chart) -> Drawn<DB> {
        self.root.fill(&WHITE)?;
        let runs = chart.runs();
        let points = || runs.iter().flatten().flatten();
        let x = Axis::linear(points().map(|p| p.0), false);
        let y = if chart.log_y {
            Axis::logarithmic(points().map(|p| p.1))
        } else {
            let percent = chart.y_label.contains('%').then_some([0.0, 100.0]);
            Axis::linear(points().map(|p| p.1).chain(percent.into_iter().flatten()), true)
        };
        let widest =
            y.ticks.iter().map(|tick| self.width_of(&tick.label, 14.0)).fold(0.0, f64::max);
        let left = 58.0 + widest;
        self.text(&chart.title, 24.0, INK, (left, 30.0), Anchor::Left)?;
        let top = self.legend(chart, left)?;
        let frame = Frame { left, right: WIDTH - 28.0, top, bottom: HEIGHT - 68.0, x, y };
        self.axes(chart, &frame)?;
        self.marks(chart, &frame)?;
        if points().next().is_none() {
            let middle = ((frame.left + frame.right) / 2.0, (frame.top + frame.bottom) / 2.0);
            self.text("no data", 18.0, SOFT_INK, middle, Anchor::Middle)?;
        }
        for (i, runs) in runs.iter().enumerate() {
            let marked = runs.iter().map(Vec::len).sum::<usize>() <= MOST_MARKED_POINTS;
            for run in runs {
                let places: Vec<_> = run.iter().map(|&point| frame.place(point)).collect();
                self.curve(&places, color_of(i))?;
                if marked || places.len() == 1 {
                    places.iter().try_for_each(|&place| self.marker(i, place))?;
                }
            }
        }
        self.root.present()
    }

    /// Draws the names of the series below the title, and returns where the plot may begin.
    fn legend(
        &mut self,
        chart: &Chart,
        left: f64,
    ) -> Result<f64, DrawingAreaErrorKind<DB::ErrorType>> {
        const SWATCH: f64 = 26.0;
        let (mut x, mut y) = (left, 62.0);
        for (i, series) in chart.series.iter().enumerate() {
            let width = SWATCH + 8.0 + self.width_of(&series.name, 15.0);
            if x > left && x + width > WIDTH - 28.0 {
                (x, y) = (left, y + 22.0);
            }
            self.curve(&[(x, y), (x + SWATCH, y)], color_of(i))?;
            self.marker(i, (x + SWATCH / 2.0, y))?;
            self.text(&series.name, 15.0, INK, (x + SWATCH + 8.0, y), Anchor::Left)?;
            x += width + 26.0;
        }
        Ok(y + 26.0)
    }

    fn axes(&mut self, chart: &Chart, frame: &Frame) -> Drawn<DB> {
        let Frame { left, right, top, bottom, x, y } = frame;
        for tick in &y.ticks {
            let at = frame.place((x.low, tick.value)).1;
            self.line((*left, at), (*right, at), 1.0, GRID)?;
            self.text(&tick.label, 14.0, SOFT_INK, (left - 9.0, at), Anchor::Right)?;
        }
        for tick in &x.ticks {
            let at = frame.place((tick.value, y.low)).0;
            self.line((at, *bottom), (at, bottom + 5.0), 1.0, AXIS)?;
            self.text(&tick.label, 14.0, SOFT_INK, (at, bottom + 17.0), Anchor::Middle)?;
        }
        self.line((*left, *bottom), (*right, *bottom), 1.2, AXIS)?;
        self.line((*left, *top), (*left, *bottom), 1.2, AXIS)?;
        let (across, down) = ((left + right) / 2.0, (top + bottom) / 2.0);
        self.text(&chart.x_label, 16.0, INK, (across, bottom + 46.0), Anchor::Middle)?;
        let scale = if chart.log_y { " (logarithmic)" } else { "" };
        let y_label = format!("{}{scale}", chart.y_label);
        self.text(&y_label, 16.0, INK, (24.0, down), Anchor::Upwards)
    }

    /// Lines at the marks up to the end of the x axis, at its begin for those before it; a name that would run into the next one is a row lower.
    fn marks(&mut self, chart: &Chart, frame: &Frame) -> Drawn<DB> {
        const SIZE: f64 = 12.0;
        let inside = chart.marks.iter().filter(|(x, _)| *x <= frame.x.high);
        let mut rows_end: Vec<f64> = Vec::new();
        for (x, name) in inside {
            let at = frame.place((x.max(frame.x.low), frame.y.low)).0;
            self.line((at, frame.top), (at, frame.bottom), 1.0, AXIS)?;
            let end = at + 5.0 + self.width_of(name, SIZE);
            let free = rows_end.iter().position(|&row_end| row_end < at);
            let row = free.unwrap_or(rows_end.len());
            if free.is_none() {
                rows_end.push(end);
            }
            rows_end[row] = end;
            let down = frame.top + 8.0 + 14.0 * row as f64;
            self.text(name, SIZE, SOFT_INK, (at + 5.0, down), Anchor::Left)?;
        }
        Ok(())
    }

    fn pixel(&self, (x, y): (f64, f64)) -> (i32, i32) {
        ((x * self.scale).round() as i32, (y * self.scale).round() as i32)
    }

    fn width_of(&self, text: &str, size: f64) -> f64 {
        let style = TextStyle::from((FONT, size * self.scale).into_font());
        self.root.estimate_text_size(text, &style).map_or(0.0, |(w, _)| f64::from(w) / self.scale)
    }

    fn text(
        &mut self,
        text: &str,
        size: f64,
        color: RGBColor,
        (x, y): (f64, f64),
        anchor: Anchor,
    ) -> Drawn<DB> {
        // The bitmap centres the line with its room for accents; the letters themselves sit higher.
        let lower = if self.corners == Corners::Discs { LETTERS_ABOVE_MIDDLE * size } else { 0.0 };
        let font = (FONT, size * self.scale).into_font();
        let (font, across, at) = match anchor {
            Anchor::Left => (font, HPos::Left, (x, y + lower)),
            Anchor::Middle => (font, HPos::Center, (x, y + lower)),
            Anchor::Right => (font, HPos::Right, (x, y + lower)),
            Anchor::Upwards => {
                (font.transform(FontTransform::Rotate270), HPos::Center, (x + lower, y))
            }
        };
        let style = TextStyle::from(font).color(&color).pos(Pos::new(across, VPos::Center));
        self.root.draw_text(text, &style, self.pixel(at))
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), width: f64, color: RGBColor) -> Drawn<DB> {
        let style = color.stroke_width((width * self.scale).round().max(1.0) as u32);
        self.root.draw(&PathElement::new(vec![self.pixel(from), self.pixel(to)], style))
    }

    fn curve(&mut self, places: &[(f64, f64)], color: RGBColor) -> Drawn<DB> {
        const LINE_WIDTH: f64 = 2.2;
        if self.corners == Corners::Exact {
            let pixels: Vec<_> = places.iter().map(|&place| self.pixel(place)).collect();
            let style = color.stroke_width((LINE_WIDTH * self.scale).round() as u32);
            return self.root.draw(&PathElement::new(pixels, style));
        }
        for pair in places.windows(2) {
            self.line(pair[0], pair[1], LINE_WIDTH, color)?;
        }
        let radius = (LINE_WIDTH * self.scale / 2.0).round() as i32;
        for &corner in places {
            self.root.draw(&Circle::new(self.pixel(corner), radius, color.filled()))?;
        }
        Ok(())
    }

    /// Series `i`'s mark: disc, square, triangle, diamond, in turn.
    fn marker(&mut self, i: usize, (x, y): (f64, f64)) -> Drawn<DB> {
        let corners: &[(f64, f64)] = match i % 4 {
            0 => {
                let radius = (4.2 * self.scale).round() as i32;
                let disc = Circle::new(self.pixel((x, y)), radius, color_of(i).filled());
                return self.root.draw(&disc);
            }
            1 => &[(-3.8, -3.8), (3.8, -3.8), (3.8, 3.8), (-3.8, 3.8)],
            2 => &[(0.0, -5.0), (4.8, 3.6), (-4.8, 3.6)],
            _ => &[(0.0, -5.4), (5.4, 0.0), (0.0, 5.4), (-5.4, 0.0)],
        };
        let pixels = corners.iter().map(|(dx, dy)| self.pixel((x + dx, y + dy)));
        self.root.draw(&Polygon::new(pixels.collect::<Vec<_>>(), color_of(i).filled()))
    }
}

fn color_of(series: usize) -> RGBColor {
    COLORS[series % COLORS.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Chart {
        let curve = |name: &str, loss: f64| Series {
            name: name.to_owned(),
            points: (1..=10).map(|d| (f64::from(d), 100.0 - loss * f64::from(d * d))).collect(),
        };
        Chart {
            title: "Accuracy over depth".to_owned(),
            x_label: "depth / d".to_owned(),
            y_label: "ADI-0.1d / %".to_owned(),
            series: vec![curve("full precision", 0.5), curve("2 bits < 8 & 4", 0.4)],
            log_y: false,
            marks: vec![],
        }
    }

    fn has_color(image: &RgbImage, RGBColor(r, g, b): RGBColor) -> bool {
        image.pixels().any(|pixel| pixel.0 == [r, g, b])
    }

    fn drawn(chart: &Chart) -> RgbImage {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        chart.write_png(&path).unwrap();
        super::super::picture::read_rgb(&path).unwrap()
    }

    #[test]
    fn a_png_has_its_size_each_curve_and_the_text() {
        let image = drawn(&example());
        assert_eq!(image.dimensions(), (1600, 1000));
        assert!(has_color(&image, COLORS[0]) && has_color(&image, COLORS[1]));
        assert!(!has_color(&image, COLORS[2]));
        // The title's letters darken the top left, which stays white without one.
        let dark_in_title = |image: &RgbImage| {
            let inside = (150..700).flat_map(|x| (30..90).map(move |y| (x, y)));
            inside.filter(|&(x, y)| image.get_pixel(x, y).0[0] < 128).count()
        };
        assert!(dark_in_title(&image) > 500);
        assert_eq!(dark_in_title(&drawn(&Chart { title: String::new(), ..example() })), 0);
    }

    #[test]
    fn an_svg_names_everything_and_escapes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.svg");
        example().write_svg(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("<svg width=\"800\" height=\"500\" viewBox=\"0 0 16000 10000\""));
        let words = [
            "Accuracy over depth",
            "depth / d",
            "ADI-0.1d / %",
            "full precision",
            "&lt; 8 &amp; 4",
        ];
        for word in words {
            assert!(text.contains(word), "{word} is not in {text}");
        }
        // Two curves and two swatches of the legend.
        assert_eq!(text.matches("stroke=\"#0072B2\" stroke-width=\"44\"").count(), 2);
    }

    #[test]
    fn marks_are_lines_with_their_names_and_a_logarithmic_axis_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.svg");
        let svg = |chart: &Chart| {
            chart.write_svg(&path).unwrap();
            std::fs::read_to_string(&path).unwrap()
        };
        let count = |text: &str| text.matches("<polyline").count();
        let plain = svg(&example());
        assert!(!plain.contains("logarithmic"));
        let marks = [(2.0, "fpn"), (2.1, "head"), (99.0, "outside")];
        let marks = marks.map(|(x, name)| (x, name.to_owned())).to_vec();
        let marked = svg(&Chart { marks, log_y: true, ..example() });
        assert!(marked.contains("ADI-0.1d / % (logarithmic)"));
        assert!(marked.contains("fpn") && marked.contains("head") && !marked.contains("outside"));
        let two = Chart { marks: vec![(2.0, "a".into()), (2.1, "b".into())], ..example() };
        assert_eq!(count(&svg(&two)), count(&plain) + 2);
    }

    #[test]
    fn gaps_single_points_and_empty_charts_can_be_drawn() {
        let mut chart = example();
        chart.series[0].points =
            vec![(0.0, f64::NAN), (1.0, 3.0), (f64::INFINITY, 1.0), (2.0, 0.0)];
        chart.series[1].points = vec![];
        for log_y in [false, true] {
            chart.log_y = log_y;
            assert!(has_color(&drawn(&chart), COLORS[0]));
        }
        assert_eq!(chart.runs(), [vec![vec![(1.0, 3.0_f64.log10())]], vec![]]);
        chart.series.clear();
        assert!(!has_color(&drawn(&chart), COLORS[0]));
    }
}
