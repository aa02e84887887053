//! Data flows one way: no room reads from one above or beside it, and files form no new circles.
//!
//! What each room may use is the table at the head of `src/lib.rs`: edit it there. The sources are parsed, so that
//! `super::super::`, lists, renamed imports and paths inside macros count like any other path.

mod circles;
mod source;
mod table;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use circles::{Graph, circles};
use source::{Crate, Files, Module, Named};
use table::Room;

/// Circles of files within a room that are known, and may shrink. A new one fails, and so does one that is gone: take it
/// out then.
const KNOWN_CIRCLES: &[&[&str]] = &[];

/// What programs may use of the library.
const PROGRAMS_USE: &str = "cli";

fn read_folder(folder: &Path, files: &mut Files) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_folder(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.insert(path.clone(), fs::read_to_string(&path).unwrap());
        }
    }
}

/// The files of `src/`, their paths from there on.
fn sources() -> Files {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Files::new();
    read_folder(&src, &mut files);
    let below = |path: PathBuf| path.strip_prefix(&src).unwrap().to_owned();
    files.into_iter().map(|(path, text)| (below(path), text)).collect()
}

/// Every path of the crate's own, from its root on.
fn own_paths(all: &Crate) -> impl Iterator<Item = (&Module, &Named, Vec<String>)> {
    let named = all.modules.iter().flat_map(|m| m.named.iter().map(move |named| (m, named)));
    // A single word is a name that a `use` brought in, which is counted itself.
    let whole = named.filter(|(_, named)| named.path.len() > 1 || named.glob);
    whole.filter_map(|(m, named)| Some((m, named, all.absolute(m, &named.path)?)))
}

/// Uses of a room that the table does not allow, and names at the crate's root that are no room.
fn wrong_arrows(all: &Crate, rooms: &[Room]) -> Vec<String> {
    let room_of = |name: &str| rooms.iter().find(|room| room.name == name);
    let mut wrong = BTreeSet::new();
    for (module, named, path) in own_paths(all) {
        let (Some(own), Some(used)) = (module.path.first(), path.first()) else { continue };
        let at = format!("{}:{}", module.file.display(), named.line);
        match (room_of(own), room_of(used)) {
            (None, _) => {
                wrong.insert(format!("{}: {own} is no room of the table", module.file.display()));
            }
            (_, None) => {
                wrong.insert(format!("{at}: crate::{used} is no room of the table"));
            }
            (Some(room), Some(_)) if own != used && !room.uses.contains(used) => {
                wrong.insert(format!("{at}: {own} uses {used}"));
            }
            _ => {}
        }
    }
    wrong.into_iter().collect()
}

/// Which file uses which, without what only tests use. A file is not a user of what it only declares with `mod`; and a
/// module and those inside it are one thing: that they use its file is not an arrow.
fn file_graph(all: &Crate) -> Graph<String> {
    let text = |file: &Path| file.display().to_string();
    let mut graph = Graph::new();
    for module in all.modules.iter().filter(|module| !module.test) {
        graph.entry(text(&module.file)).or_default();
    }
    for (module, named, path) in own_paths(all).filter(|(_, named, _)| !named.test) {
        let Some((to, is_module)) = all.definition(&path) else { continue };
        let to = &all.modules[to];
        let is_inside = module.path.starts_with(&to.path);
        // A module that is brought in by name is used where a path goes on from it.
        if !is_inside && to.file != module.file && !to.test && (!is_module || named.glob) {
            graph.entry(text(&module.file)).or_default().insert(text(&to.file));
        }
    }
    graph
}

fn first_part(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap_or(file)
}

fn is_within_a_room(circle: &[String]) -> bool {
    circle.iter().all(|file| first_part(file) == first_part(&circle[0]))
}

#[test]
fn no_room_reads_from_above_or_beside() {
    let files = sources();
    let rooms = table::read(&files[Path::new("lib.rs")]);
    assert!(rooms.len() > 10, "the table at the head of src/lib.rs was not read: {rooms:?}");
    let mut wrong = table::arrows_up(&rooms);
    let all = Crate::read(&files, Path::new("lib.rs"));
    let modules = all.modules.iter().filter(|module| module.path.len() == 1);
    let modules: BTreeSet<&str> = modules.map(|module| module.path[0].as_str()).collect();
    let absent = rooms.iter().filter(|room| !modules.contains(room.name.as_str()));
    wrong.extend(absent.map(|room| format!("{} of the table is not a module", room.name)));
    wrong.extend(wrong_arrows(&all, &rooms));
    assert!(wrong.is_empty(), "arrows up or sideways:\n{}", wrong.join("\n"));
}

#[test]
fn files_form_no_new_circles() {
    let all = Crate::read(&sources(), Path::new("lib.rs"));
    let found = circles(&file_graph(&all));
    let between: Vec<_> = found.iter().filter(|circle| !is_within_a_room(circle)).collect();
    assert!(between.is_empty(), "circles of files between rooms: {between:#?}");
    let known: Vec<Vec<String>> =
        KNOWN_CIRCLES.iter().map(|c| c.iter().map(|&f| f.to_owned()).collect()).collect();
    let list = |circles: &[&Vec<String>]| {
        let lines = circles.iter().map(|circle| format!("    &{circle:?},\n"));
        lines.collect::<String>()
    };
    let is_part = |part: &[String], whole: &[String]| part.iter().all(|file| whole.contains(file));
    let is_known = |circle: &&Vec<String>| known.iter().any(|known| is_part(circle, known));
    let is_there = |known: &&Vec<String>| found.iter().any(|circle| is_part(circle, known));
    let new: Vec<_> = found.iter().filter(|circle| !is_known(circle)).collect();
    let gone: Vec<_> = known.iter().filter(|known| !is_there(known)).collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "new circles of files:\n{}circles that are gone:\n{}all, as KNOWN_CIRCLES has them:\n{}",
        list(&new),
        list(&gone),
        list(&found.iter().collect::<Vec<_>>())
    );
}

#[test]
fn every_file_belongs_to_the_library_or_is_a_program() {
    let files = sources();
    let all = Crate::read(&files, Path::new("lib.rs"));
    let read: BTreeSet<&PathBuf> = all.modules.iter().map(|module| &module.file).collect();
    for file in files.keys().filter(|file| !read.contains(file)) {
        let is_program = file == Path::new("main.rs") || file.starts_with("bin");
        assert!(is_program, "{} is declared by no `mod`", file.display());
        let program = Crate::read(&files, file);
        let named = program.modules.iter().flat_map(|module| &module.named);
        for named in named.filter(|named| named.path[0] == "mqat" && named.path.len() > 1) {
            let used = &named.path[1];
            assert_eq!(used, PROGRAMS_USE, "{}:{}: mqat::{used}", file.display(), named.line);
        }
    }
}

/// A crate of three rooms: `top` above `low` and `side`, which must not know each other.
fn made_up(low: &str) -> Crate {
    let files = [
        ("lib.rs", "pub mod top; pub mod low; pub mod side; mod lost;"),
        ("lost.rs", ""),
        ("top.rs", "pub fn up() {}"),
        (
            "side/mod.rs",
            "mod part; pub use part::{Part, Part as Piece}; pub mod deep { pub fn f() {} }",
        ),
        ("side/part.rs", "pub struct Part;"),
        ("low/mod.rs", "mod code; mod other; #[cfg(test)] #[path = \"code_tests.rs\"] mod tests;"),
        ("low/other.rs", "pub fn g() {}"),
        ("low/code_tests.rs", "use super::code::*;"),
        ("low/code.rs", low),
    ];
    let own = |&(path, text): &(&str, &str)| (PathBuf::from(path), text.to_owned());
    Crate::read(&files.iter().map(own).collect(), Path::new("lib.rs"))
}

fn wrong_in(low: &str) -> Vec<String> {
    let table = "//! ```text\n//! top   x   uses low side\n//! low   x\n//! side  x\n//! ```\n";
    wrong_arrows(&made_up(low), &table::read(table))
}

#[test]
fn every_way_to_name_another_room_is_seen() {
    for low in [
        "use crate::side::Part;",
        "use crate::{low::other, side::{self, deep}};",
        "use super::super::side::Part;",
        "use crate::side as s;",
        "use crate as root; fn f() { root::side::deep::f() }",
        "use super::super as root; fn f() { root::side::deep::f() }",
        "use crate::side::*;",
        "fn f() -> Vec<crate::side::Part> { vec![] }",
        "fn f() { super::super::side::deep::f() }",
        "mod inner { pub fn f() { super::super::super::side::deep::f() } }",
        "impl crate::side::Shape for u8 {}",
        "fn f() { println!(\"{:?}\", crate::side::Part) }",
        "fn f() { assert!(matches!(1, _ if { crate::side::deep::f(); true })) }",
        "macro_rules! m { () => { $crate::side::deep::f() } }",
        "macro_rules! m { () => { use crate::{low, side::Part}; } }",
        "macro_rules! m { () => { use crate::side::*; } }",
        "#[derive(Debug)] struct S { #[serde(with = \"crate::side::deep\")] x: u8 }",
        "#[cfg(test)] mod tests { use crate::side::Part; }",
    ] {
        let wrong = wrong_in(low);
        assert_eq!(wrong, ["low/code.rs:1: low uses side"], "{low}");
    }
    assert_eq!(wrong_in("\n\nuse crate::top::up;"), ["low/code.rs:3: low uses top"]);
}

#[test]
fn what_names_no_other_room_is_left_alone() {
    for low in [
        "use super::other::g; use crate::low::other; fn f() { other::g() }",
        "// crate::side\n/// See [`crate::side::Part`].\npub(in crate::low) fn f() {}",
        "fn f() { println!(\"crate::side::Part\") }",
        "use std::side::Part; use side::Part as P; fn f() { side::f() }",
        "use serde::serde; fn f() { serde::side() }",
    ] {
        assert_eq!(wrong_in(low), [""; 0], "{low}");
    }
}

#[test]
fn a_module_that_the_table_lacks_is_named() {
    assert_eq!(
        wrong_in("use crate::lost::x;"),
        ["low/code.rs:1: crate::lost is no room of the table"]
    );
}

#[test]
fn circles_of_files_are_those_of_what_is_defined_where() {
    let of = |low: &str, other: &str| {
        let files = [
            ("lib.rs", "mod low;"),
            (
                "low/mod.rs",
                "mod code; mod other; pub use code::A; pub use other::*; pub const C: u8 = 0;",
            ),
            ("low/code.rs", low),
            ("low/other.rs", other),
        ];
        let own = |&(path, text): &(&str, &str)| (PathBuf::from(path), text.to_owned());
        circles(&file_graph(&Crate::read(&files.iter().map(own).collect(), Path::new("lib.rs"))))
    };
    // By a name that the room passes on, and back.
    let both = [["low/code.rs", "low/other.rs"]];
    assert_eq!(of("pub struct A; use super::B;", "pub struct B; use super::A;"), both);
    assert_eq!(
        of("pub struct A; use super::other;", "pub struct B; use super::code::A;"),
        [[""; 0]; 0]
    );
    assert_eq!(
        of(
            "pub struct A; use super::other; fn f(_: other::B) {}",
            "pub struct B; use super::code::A;"
        ),
        both
    );
    // One way, and the other only in tests.
    let tests = "pub struct B; #[cfg(test)] mod tests { use crate::low::A; }";
    assert_eq!(of("pub struct A; use super::B;", tests), [[""; 0]; 0]);
    // With the file of the module that both are in.
    assert_eq!(of("pub struct A; use super::C;", ""), [[""; 0]; 0]);
    let across = ["low/a.rs".to_owned(), "side/b.rs".to_owned()];
    assert!(!is_within_a_room(&across) && is_within_a_room(&across[..1]));
}
