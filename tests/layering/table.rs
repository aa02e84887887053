//! The table of rooms at the head of `src/lib.rs`.

use std::collections::BTreeSet;

/// A room and what it may use.
#[derive(Debug, PartialEq)]
pub struct Room {
    /// Its module under the crate's root.
    pub name: String,
    /// Names of rooms, and of crates that are worth naming.
    pub uses: BTreeSet<String>,
}

/// Reads the rooms from the `//!` block between ` ```text` and ` ``` `, the highest first.
///
/// A room has one line: its name, what it is, `uses`, and the rooms below it that it may use, or `every room below`. A line that
/// begins with blanks continues the line above it.
pub fn read(lib: &str) -> Vec<Room> {
    let lines = lib.lines().map_while(|line| line.strip_prefix("//!"));
    let block =
        lines.skip_while(|l| l.trim() != "```text").skip(1).take_while(|l| l.trim() != "```");
    let mut joined: Vec<String> = vec![];
    for line in block {
        match joined.last_mut() {
            Some(last) if line.starts_with("  ") => *last += line,
            _ => joined.push(line.trim().to_owned()),
        }
    }
    let names: Vec<&str> = joined.iter().map(|l| l.split(' ').next().unwrap_or("")).collect();
    let rooms = joined.iter().enumerate().map(|(i, line)| {
        let uses = line.split_once(" uses ").map_or("", |(_, uses)| uses);
        let uses = match uses.starts_with("every room below") {
            true => names[i + 1..].iter().map(|name| (*name).to_owned()).collect(),
            false => uses.split_whitespace().map(str::to_owned).collect(),
        };
        Room { name: names[i].to_owned(), uses }
    });
    rooms.collect()
}

/// Arrows of the table itself that point up or sideways: at the room itself or at one above it.
pub fn arrows_up(rooms: &[Room]) -> Vec<String> {
    let up = |i: usize| {
        let above = &rooms[..=i];
        let used = above.iter().filter(move |room| rooms[i].uses.contains(&room.name));
        used.map(move |used| format!("{} uses {}", rooms[i].name, used.name))
    };
    (0..rooms.len()).flat_map(up).collect()
}

#[test]
fn a_table_is_read_with_its_long_lines() {
    let lib = "//! A crate.\n//!\n//! ```text\n//! top   what is seen        uses every room below\n\
               //! high  does much           uses low\n//!       and more                 base\n\
               //! low   that uses little    uses base tch\n//! base\n//! ```\n\npub mod top;\n";
    let rooms = read(lib);
    let uses = |i: usize| rooms[i].uses.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    let names: Vec<&str> = rooms.iter().map(|room| room.name.as_str()).collect();
    assert_eq!(names, ["top", "high", "low", "base"]);
    assert_eq!([uses(0), uses(3)], ["base high low", ""]);
    assert!(rooms[1].uses.contains("low") && rooms[1].uses.contains("base"));
    assert!(rooms[2].uses.contains("base"));
    assert!(arrows_up(&rooms).is_empty(), "{:?}", arrows_up(&rooms));
}

#[test]
fn arrows_up_and_at_itself_are_found_in_a_table() {
    let rooms = read("//! ```text\n//! a   x  uses b\n//! b   x  uses a b\n//! ```\n");
    assert_eq!(arrows_up(&rooms), ["b uses a", "b uses b"]);
}
