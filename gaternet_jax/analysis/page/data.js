// What the page knows: the packed data, unpacked, and the questions that are asked of it.

const USUAL = 0.8; // of the images of a class: closed although the class opens it as often as this is unusual
const RARE = 0.2; // open although the class opens it no more often than this is unusual
const KIND = { off: 0, dependent: 1, on: 2 };

const ARRAYS = {
  uint8: Uint8Array,
  uint16: Uint16Array,
  int32: Int32Array,
  float32: Float32Array,
};

/** A packed array as a typed array; typed arrays are little-endian wherever browsers run. */
async function unpack({ type, data }) {
  const deflated = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new ARRAYS[type](await new Response(stream).arrayBuffer());
}

/** The page's data, with every packed array unpacked under its own name. */
async function readData(text) {
  const packed = JSON.parse(text);
  const unpackAll = async (value) => {
    const isPacked = (entry) => entry && typeof entry === "object" && "data" in entry && "type" in entry;
    const entries = Object.entries(value).map(async ([name, entry]) => [
      name,
      isPacked(entry) ? await unpack(entry) : entry,
    ]);
    return Object.fromEntries(await Promise.all(entries));
  };
  const data = await unpackAll(packed);
  if (data.ablation) data.ablation = await unpackAll(data.ablation);
  return data;
}

const BITS_SET = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll("0", "").length);

/** Questions about images, filters and classes; images are numbered within the page's sample. */
class Model {
  constructor(data) {
    Object.assign(this, data);
    this.count = this.group.length;
    this.gateCount = this.kind.length;
    this.rowBytes = Math.ceil(this.gateCount / 8);
    this.unknownGroup = this.classes.length;
    this.members = this.groupImages();
    this.siteOf = new Int32Array(this.gateCount);
    this.sites.forEach((site, number) => this.siteOf.fill(number, site.offset, site.offset + site.size));
    this.groups = [...this.groupCount.keys()].filter((group) => this.groupCount[group] > 0);
  }

  /** Group -> its images. */
  groupImages() {
    const members = new Map();
    this.group.forEach((group, image) => {
      if (!members.has(group)) members.set(group, []);
      members.get(group).push(image);
    });
    return members;
  }

  isOpen(image, gate) {
    return (this.gates[image * this.rowBytes + (gate >> 3)] >> (gate & 7)) & 1;
  }

  row(image) {
    return this.gates.subarray(image * this.rowBytes, (image + 1) * this.rowBytes);
  }

  countOpen(image) {
    return this.row(image).reduce((sum, byte) => sum + BITS_SET[byte], 0);
  }

  /** In how many filters two images differ. */
  distance(image, other) {
    const [a, b] = [this.row(image), this.row(other)];
    let sum = 0;
    for (let i = 0; i < a.length; i += 1) sum += BITS_SET[a[i] ^ b[i]];
    return sum;
  }

  /** The other images, nearest first, as [image, distance]. */
  nearest(image, wanted) {
    const all = [];
    for (let other = 0; other < this.count; other += 1) {
      if (other !== image) all.push([other, this.distance(image, other)]);
    }
    return all.sort((a, b) => a[1] - b[1]).slice(0, wanted);
  }

  /** The fraction of a group's images, of the whole split, that open a filter. */
  rate(group, gate) {
    return this.groupRate[group * this.gateCount + gate] / 255;
  }

  groupName(group) {
    if (group === this.unknownGroup) return "unknown class";
    return this.classes[group] ?? `class ${group}`;
  }

  /** A group in a sentence. */
  groupWords(group) {
    return group === this.unknownGroup ? "unknown class" : `class ${this.groupName(group)}`;
  }

  isWrong(image) {
    return this.group[image] !== this.unknownGroup && this.group[image] !== this.prediction[image];
  }

  /** Filters whose state in an image is not its class's usual one, the most unusual first. */
  unusual(image) {
    const group = this.group[image];
    const opened = [];
    const closed = [];
    for (let gate = 0; gate < this.gateCount; gate += 1) {
      if (this.isOpen(image, gate)) {
        if (this.rate(group, gate) <= RARE) opened.push(gate);
      } else if (this.rate(group, gate) >= USUAL) closed.push(gate);
    }
    opened.sort((a, b) => this.rate(group, a) - this.rate(group, b));
    closed.sort((a, b) => this.rate(group, b) - this.rate(group, a));
    return { opened, closed };
  }

  /** All filters that depend on the image. */
  dependentGates() {
    return [...this.kind.keys()].filter((gate) => this.kind[gate] === KIND.dependent);
  }

  gateName(gate) {
    const site = this.sites[this.siteOf[gate]];
    return `${site.name} · ${gate - site.offset}`;
  }

  /** The groups with images, most open first, as [group, rate]. */
  groupsByRate(gate) {
    return this.groups.map((group) => [group, this.rate(group, gate)]).sort((a, b) => b[1] - a[1]);
  }

  /** Accuracies with a filter shut or opened: by class, the change in fractions; null where not measured. */
  ablationOf(gate) {
    const number = this.ablation ? this.ablation.gates.indexOf(gate) : -1;
    if (number < 0) return null;
    const classes = this.ablation.accuracy.length;
    return Array.from({ length: classes }, (_, group) => ({
      group,
      accuracy: this.ablation.accuracy[group],
      shut: this.ablation.shut[number * classes + group] - this.ablation.accuracy[group],
      open: this.ablation.open[number * classes + group] - this.ablation.accuracy[group],
    })).filter(({ accuracy }) => !Number.isNaN(accuracy));
  }
}
