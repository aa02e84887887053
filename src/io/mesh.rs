//! Triangle meshes in PLY files: ascii, and binary of both byte orders.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::write_atomic;
use header::{Element, Format, Header, List, Property, Scalar};

mod header;

/// A triangle mesh, in the units of its file (millimetres in BOP).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mesh {
    /// Positions.
    pub vertices: Vec<[f64; 3]>,
    /// Corners of the triangles, as indices into `vertices`.
    pub faces: Vec<[u32; 3]>,
}

/// Reads a PLY file (ascii, binary little or big endian).
///
/// Properties and elements other than `x`, `y`, `z` and the faces' indices are skipped; polygons become fans of
/// triangles around their first corner. A mesh may lack faces.
///
/// # Errors
/// If the file cannot be read, is not a PLY, is shorter than its counts claim, has no vertices, or holds a
/// coordinate that is not finite or an index that is not a vertex; names the file and the place.
pub fn read_ply(path: &Path) -> Result<Mesh> {
    let read = fs::read(path).map_err(Into::into).and_then(|bytes| parse(&bytes));
    read.with_context(|| format!("reading mesh {}", path.display()))
}

/// As [`read_ply`], with the colours of the vertices: their properties `red`, `green`, `blue`, 0 to 255; none where there are none.
///
/// # Errors
/// As [`read_ply`].
pub fn read_colored_ply(path: &Path) -> Result<(Mesh, Option<Vec<[u8; 3]>>)> {
    let read = fs::read(path).map_err(anyhow::Error::from).and_then(|bytes| {
        let mut colors = None;
        let mesh = parse_with(&bytes, &mut colors)?;
        Ok((mesh, colors))
    });
    read.with_context(|| format!("reading mesh {}", path.display()))
}

fn parse(bytes: &[u8]) -> Result<Mesh> {
    parse_with(bytes, &mut None)
}

fn parse_with(bytes: &[u8], colors: &mut Option<Vec<[u8; 3]>>) -> Result<Mesh> {
    let (header, body) = Header::parse(bytes)?;
    let mut values: Box<dyn Values> = match header.format {
        Format::Ascii => Box::new(AsciiValues { rest: body, line: &[] }),
        Format::LittleEndian => Box::new(BinaryValues { rest: body, big_endian: false }),
        Format::BigEndian => Box::new(BinaryValues { rest: body, big_endian: true }),
    };
    let mut mesh = Mesh::default();
    for element in &header.elements {
        let least = values.least_bytes(element);
        let claimed = least.checked_mul(element.count);
        ensure!(
            claimed.is_some_and(|n| n <= values.num_bytes_left()),
            "{} {} elements do not fit into the {} bytes left: the file is truncated or damaged",
            element.count,
            element.name,
            values.num_bytes_left()
        );
        match element.name.as_str() {
            "vertex" => (mesh.vertices, *colors) = read_vertices(element, &mut *values)?,
            "face" => mesh.faces = read_faces(element, &mut *values)?,
            "tristrips" => {
                bail!("triangle strips are not supported, save the mesh with plain faces")
            }
            _ if element.properties.is_empty() => {}
            _ => read_rows(element, &mut *values, |_, _, _| Ok(()))?,
        }
    }
    ensure!(!mesh.vertices.is_empty(), "the mesh has no vertices");
    let num_vertices = mesh.vertices.len();
    if let Some(stray) = mesh.faces.iter().flatten().find(|&&c| c as usize >= num_vertices) {
        bail!("a face has the corner {stray}, and there are {num_vertices} vertices");
    }
    Ok(mesh)
}

/// Where the numbers of the rows come from.
trait Values {
    fn num_bytes_left(&self) -> usize;
    /// The fewest bytes that a row of the element can take.
    fn least_bytes(&self, element: &Element) -> usize;
    fn start_row(&mut self) -> Result<()>;
    fn next(&mut self, scalar: Scalar) -> Result<f64>;
    fn end_row(&mut self) -> Result<()>;
}

struct AsciiValues<'a> {
    rest: &'a [u8],
    line: &'a [u8],
}

impl Values for AsciiValues<'_> {
    fn num_bytes_left(&self) -> usize {
        self.rest.len() + 1 // the last line may lack its end
    }

    fn least_bytes(&self, element: &Element) -> usize {
        2 * element.properties.len() // a digit and a space or line end
    }

    fn start_row(&mut self) -> Result<()> {
        while self.line.is_empty() {
            ensure!(!self.rest.is_empty(), "the file ends here: it is truncated");
            let end = self.rest.iter().position(|&b| b == b'\n').unwrap_or(self.rest.len());
            self.line = self.rest[..end].trim_ascii();
            self.rest = self.rest.get(end + 1..).unwrap_or_default();
        }
        Ok(())
    }

    fn next(&mut self, _: Scalar) -> Result<f64> {
        ensure!(!self.line.is_empty(), "the line has too few numbers");
        let end = self.line.iter().position(u8::is_ascii_whitespace).unwrap_or(self.line.len());
        let (word, rest) = self.line.split_at(end);
        self.line = rest.trim_ascii_start();
        let text = std::str::from_utf8(word).ok();
        let number = text.and_then(|word| word.parse().ok().or_else(|| not_a_number(word)));
        number.with_context(|| format!("`{}` is not a number", String::from_utf8_lossy(word)))
    }

    fn end_row(&mut self) -> Result<()> {
        let surplus = std::mem::take(&mut self.line);
        ensure!(surplus.is_empty(), "`{}` is too much", String::from_utf8_lossy(surplus));
        Ok(())
    }
}

/// NaN as C's libraries print it: `-nan(ind)`, `1.#QNAN`. Coordinates must be finite, other properties need not be.
fn not_a_number(word: &str) -> Option<f64> {
    let word = word.trim_start_matches(['-', '+']).to_ascii_lowercase();
    (word.starts_with("nan") || word.starts_with("1.#")).then_some(f64::NAN)
}

struct BinaryValues<'a> {
    rest: &'a [u8],
    big_endian: bool,
}

impl Values for BinaryValues<'_> {
    fn num_bytes_left(&self) -> usize {
        self.rest.len()
    }

    fn least_bytes(&self, element: &Element) -> usize {
        element.properties.iter().map(|p| p.list.map_or(p.scalar, |l| l.length).num_bytes()).sum()
    }

    fn start_row(&mut self) -> Result<()> {
        Ok(())
    }

    fn next(&mut self, scalar: Scalar) -> Result<f64> {
        let taken = self.rest.split_at_checked(scalar.num_bytes());
        let (bytes, rest) = taken.context("the file ends here: it is truncated")?;
        self.rest = rest;
        let mut little = [0; 8];
        little[..bytes.len()].copy_from_slice(bytes);
        if self.big_endian {
            little[..bytes.len()].reverse();
        }
        Ok(scalar.value(little))
    }

    fn end_row(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Hands each number to `take`, with the indices of its row and property.
fn read_rows(
    element: &Element,
    values: &mut dyn Values,
    mut take: impl FnMut(usize, usize, f64) -> Result<()>,
) -> Result<()> {
    for row in 0..element.count {
        let mut read = || -> Result<()> {
            values.start_row()?;
            for (i, Property { name, scalar, list }) in element.properties.iter().enumerate() {
                let length = match list {
                    None => 1,
                    Some(List { length }) => whole(values.next(*length)?)
                        .with_context(|| format!("the length of the list {name}"))?,
                };
                for _ in 0..length {
                    take(row, i, values.next(*scalar)?)?;
                }
            }
            values.end_row()
        };
        read().with_context(|| format!("{} {row}", element.name))?;
    }
    Ok(())
}

fn whole(value: f64) -> Result<u32> {
    let fits = value.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&value);
    ensure!(fits, "{value} is not a whole number of 0 or more");
    Ok(value as u32)
}

/// Positions, and colours where there are some.
type Vertices = (Vec<[f64; 3]>, Option<Vec<[u8; 3]>>);

fn read_vertices(element: &Element, values: &mut dyn Values) -> Result<Vertices> {
    let mut axis_of = vec![None; element.properties.len()];
    for (axis, name) in ["x", "y", "z"].into_iter().enumerate() {
        let index = element.properties.iter().position(|p| p.name == name && p.list.is_none());
        axis_of[index.with_context(|| format!("the vertices have no property {name}"))?] =
            Some(axis);
    }
    let place =
        |name: &str| element.properties.iter().position(|p| p.name == name && p.list.is_none());
    let channels = match ["red", "green", "blue"].map(place) {
        [Some(r), Some(g), Some(b)] => Some([r, g, b]),
        _ => None,
    };
    let mut colors = channels.map(|_| vec![[0u8; 3]; element.count]);
    let mut flat = [Vec::new(), Vec::new(), Vec::new()];
    flat.iter_mut().for_each(|axis| axis.reserve(element.count));
    read_rows(element, values, |row, property, value| {
        let channel = channels.and_then(|all| all.iter().position(|place| *place == property));
        if let (Some(colors), Some(channel)) = (&mut colors, channel) {
            colors[row][channel] = value.clamp(0.0, 255.0) as u8;
        }
        if let Some(axis) = axis_of[property] {
            ensure!(value.is_finite(), "the coordinate is {value}");
            flat[axis].push(value);
        }
        Ok(())
    })?;
    let [xs, ys, zs] = flat;
    let positions = xs.into_iter().zip(ys).zip(zs).map(|((x, y), z)| [x, y, z]).collect();
    Ok((positions, colors))
}

fn read_faces(element: &Element, values: &mut dyn Values) -> Result<Vec<[u32; 3]>> {
    let is_corners = |p: &Property| matches!(p.name.as_str(), "vertex_indices" | "vertex_index");
    let corners_at = element.properties.iter().position(|p| is_corners(p) && p.list.is_some());
    let corners_at = corners_at.context("the faces have no list vertex_indices or vertex_index")?;
    let mut polygons: Vec<Vec<u32>> = vec![Vec::new(); element.count];
    read_rows(element, values, |row, property, value| {
        if property == corners_at {
            polygons[row].push(whole(value).context("a corner")?);
        }
        Ok(())
    })?;
    let mut faces = Vec::with_capacity(element.count);
    for (row, corners) in polygons.iter().enumerate() {
        ensure!(corners.len() >= 3, "face {row} has {} corners, expected 3 or more", corners.len());
        faces.extend(corners.windows(2).skip(1).map(|pair| [corners[0], pair[0], pair[1]]));
    }
    Ok(faces)
}

/// Writes an ascii PLY, [whole or not at all](write_atomic); coordinates keep all their digits.
///
/// # Errors
/// If `colors` is given and not one per vertex, or the file cannot be written.
pub fn write_ply(path: &Path, mesh: &Mesh, colors: Option<&[[u8; 3]]>) -> Result<()> {
    if let Some(colors) = colors {
        let (given, expected) = (colors.len(), mesh.vertices.len());
        let at = path.display();
        ensure!(given == expected, "writing {at}: {given} colours for {expected} vertices");
    }
    write_atomic(path, |out| {
        writeln!(out, "ply\nformat ascii 1.0\nelement vertex {}", mesh.vertices.len())?;
        writeln!(out, "property double x\nproperty double y\nproperty double z")?;
        if colors.is_some() {
            writeln!(out, "property uchar red\nproperty uchar green\nproperty uchar blue")?;
        }
        writeln!(out, "element face {}", mesh.faces.len())?;
        writeln!(out, "property list uchar int vertex_indices\nend_header")?;
        for (i, [x, y, z]) in mesh.vertices.iter().enumerate() {
            match colors.map(|colors| colors[i]) {
                Some([r, g, b]) => writeln!(out, "{x} {y} {z} {r} {g} {b}")?,
                None => writeln!(out, "{x} {y} {z}")?,
            }
        }
        for [a, b, c] in &mesh.faces {
            writeln!(out, "3 {a} {b} {c}")?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests;
