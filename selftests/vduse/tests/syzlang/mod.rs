// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A parser for syzkaller's description language. It supports the part of the language that
//! determines the offsets of structure members.

use std::collections::HashMap;

/// What the parser has read from a file in syzkaller's description language.
pub struct Description {
    composites: HashMap<String, Composite>,
    /// The type of each alias and resource, keyed by its name.
    aliases: HashMap<String, String>,
    /// The type of each ioctl's argument, keyed by the ioctl's command.
    ioctls: HashMap<String, String>,
    /// Maximum alignment of an integer in bytes.
    alignment: usize,
}

/// A structure or a union.
struct Composite {
    is_union: bool,
    members: Vec<(String, String)>,
}

/// Size and alignment of a type in bytes.
type Extent = (usize, usize);

/// Splits a type into its name and its options.
fn split(text: &str) -> (&str, Vec<&str>) {
    let Some((name, rest)) = text.split_once('[') else {
        return (text, Vec::new());
    };
    let inside = rest.strip_suffix(']').expect("a bracket");
    let mut depth = 0;
    let options = inside.split(|c| {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => (),
        }
        c == ',' && depth == 0
    });
    (name, options.map(str::trim).collect())
}

impl Description {
    /// Parses the description `text`. `alignment` is the alignment of 64-bit integers, in bytes, in
    /// the programs for which the description is parsed.
    pub fn parse(text: &str, alignment: usize) -> Self {
        let mut this = Self {
            composites: HashMap::new(),
            aliases: HashMap::new(),
            ioctls: HashMap::new(),
            alignment,
        };
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let mut open: Option<(String, Composite)> = None;
        for line in lines.filter(|line| !line.is_empty()) {
            if let Some((name, composite)) = &mut open {
                if line.starts_with(['}', ']']) {
                    let (name, composite) = open.take().expect("what was opened");
                    this.composites.insert(name, composite);
                } else {
                    let (member, rest) = line.trim().split_once('\t').expect(name);
                    let kind = rest.trim().split('\t').next().expect(name);
                    composite.members.push((member.to_owned(), kind.to_owned()));
                }
            } else if let Some(name) = line.strip_suffix(" {").or(line.strip_suffix(" [")) {
                let composite = Composite {
                    is_union: line.ends_with('['),
                    members: Vec::new(),
                };
                open = Some((name.to_owned(), composite));
            } else if let Some(alias) = line.strip_prefix("type ") {
                let (name, kind) = alias.split_once(' ').expect("an alias");
                this.aliases.insert(name.to_owned(), kind.to_owned());
            } else if let Some(resource) = line.strip_prefix("resource ") {
                let (name, rest) = resource.split_once('[').expect("a resource");
                let kind = rest.split(']').next().expect("its type");
                this.aliases.insert(name.to_owned(), kind.to_owned());
            } else if let Some(call) = line.strip_prefix("ioctl$") {
                let (_, rest) = call.split_once(" cmd const[").expect("a command");
                let (command, rest) = rest.split_once(']').expect("a command");
                let argument = rest
                    .split_once(" arg ")
                    .map_or("", |(_, argument)| argument);
                let argument = argument
                    .rsplit_once(')')
                    .map_or("", |(argument, _)| argument);
                this.ioctls.insert(command.to_owned(), argument.to_owned());
            }
        }
        this
    }

    /// Returns the direction and the size that an ioctl's number must encode for its argument. The
    /// direction is 1 if the kernel reads the argument, 2 if the kernel writes it, and 3 for both.
    pub fn argument(&self, command: &str) -> Option<(u32, usize)> {
        let (name, options) = split(self.ioctls.get(command)?);
        let direction = match (name, options.first()) {
            ("", _) => return Some((0, 0)),
            ("ptr", Some(&"in")) => 1,
            ("ptr", Some(&"out")) => 2,
            ("ptr", Some(&"inout")) => 3,
            _ => panic!("{command}: {name}"),
        };
        Some((direction, self.size(options[1])))
    }

    /// Returns the size of a type in bytes, not counting a last member of variable length.
    pub fn size(&self, kind: &str) -> usize {
        self.extent(kind).unwrap_or_else(|| panic!("{kind}")).0
    }

    /// Returns the offset of a member. `path` is the member's name. For a nested member, `path`
    /// begins with the names of the members that contain it, separated by dots. The names of unions
    /// may be omitted.
    pub fn offset(&self, kind: &str, path: &str) -> Option<usize> {
        let (name, rest) = path.split_once('.').unwrap_or((path, ""));
        let composite = self.composites.get(kind)?;
        let places = self.places(composite);
        let found = places.iter().find(|(member, ..)| *member == name);
        if let Some(&(_, inner, at)) = found {
            return match rest {
                "" => Some(at),
                rest => self.offset(inner, rest).map(|offset| at + offset),
            };
        }
        places.iter().find_map(|&(_, inner, at)| {
            let is_union = self.composites.get(inner).is_some_and(|c| c.is_union);
            let offset = is_union.then(|| self.offset(inner, path)).flatten()?;
            Some(at + offset)
        })
    }

    /// Returns the name, type and offset of each member that precedes the first member of variable
    /// length.
    fn places<'a>(&'a self, composite: &'a Composite) -> Vec<(&'a str, &'a str, usize)> {
        let mut end = 0_usize;
        let mut places = Vec::new();
        for (member, kind) in &composite.members {
            let Some((size, alignment)) = self.extent(kind) else {
                break;
            };
            let at = end.next_multiple_of(alignment);
            places.push((&member[..], &kind[..], at));
            if !composite.is_union {
                end = at + size;
            }
        }
        places
    }

    /// Returns the size and alignment of a type, or `None` for a type of variable length.
    fn extent(&self, kind: &str) -> Option<Extent> {
        let (name, options) = split(kind);
        if let Some(composite) = self.composites.get(name) {
            let mut extent = (0_usize, 1);
            for (_, kind, at) in self.places(composite) {
                let (size, alignment) = self.extent(kind)?;
                extent = (extent.0.max(at + size), extent.1.max(alignment));
            }
            return Some((extent.0.next_multiple_of(extent.1), extent.1));
        }
        if let Some(other) = self.aliases.get(name) {
            return self.extent(other);
        }
        let integer = |size: usize| Some((size, size.min(self.alignment)));
        match name {
            "int8" => integer(1),
            "int16" => integer(2),
            "int32" | "fd" | "fd_event" => integer(4),
            "int64" | "vma64" => integer(8),
            "const" | "flags" | "bytesize" => self.extent(options.get(1)?),
            "string" => match *options.get(1)? {
                "VDUSE_NAME_MAX" => Some((vduse_uapi::NAME_MAX, 1)),
                other => panic!("a string of {other}"),
            },
            "array" => {
                let (size, alignment) = self.extent(options.first()?)?;
                let count: usize = options.get(1)?.parse().ok()?;
                Some((size * count, alignment))
            }
            _ => panic!("unknown type {kind}"),
        }
    }
}
