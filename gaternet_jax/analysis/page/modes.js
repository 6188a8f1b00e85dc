// What the map can show: one image, two images, two classes. Each answers for the map: paint, describe, tally, legend.

const DIFFER = 0.25; // rates of two classes that are further apart than this differ

const differing = (count) => `${count.toLocaleString("en")} ${count === 1 ? "differs" : "differ"}`;

/** Which filters an image opens, and which of that is unusual for its class. */
class ImageView {
  constructor(model, image) {
    Object.assign(this, { model, image, group: model.group[image], unusual: model.unusual(image) });
    this.odd = new Set([...this.unusual.opened, ...this.unusual.closed]);
  }

  state(gate) {
    if (this.model.kind[gate] === KIND.on) return STATE.alwaysOn;
    if (this.model.kind[gate] === KIND.off) return STATE.alwaysOff;
    const open = this.model.isOpen(this.image, gate);
    if (this.odd.has(gate)) return open ? STATE.openOdd : STATE.closedOdd;
    return open ? STATE.open : STATE.closed;
  }

  paint(context, gate, ...rest) {
    paintState(context, this.state(gate), ...rest);
  }

  describe(gate) {
    const { model, group } = this;
    const open = model.isOpen(this.image, gate) ? "open" : "closed";
    const name = model.groupWords(group);
    const odd = this.odd.has(gate) ? `, unusual for ${name}` : "";
    if (model.kind[gate] !== KIND.dependent) return `${model.gateName(gate)}: ${open} for every image`;
    const rates = `opens for ${percent(model.openRate[gate])} of all images, ${percent(model.rate(group, gate))} of ${name}`;
    return `${model.gateName(gate)}: ${open}${odd}; ${rates}`;
  }

  tally(site) {
    let open = 0;
    for (let i = 0; i < site.size; i += 1) open += this.model.isOpen(this.image, site.offset + i);
    return `${open} of ${site.size}`;
  }

  legend() {
    const name = this.model.groupWords(this.group);
    return [
      [STATE.open, "open"],
      [STATE.closed, "closed"],
      [STATE.openOdd, `open, rare for ${name}`],
      [STATE.closedOdd, `closed, usual for ${name}`],
      [STATE.alwaysOn, "always open"],
      [STATE.alwaysOff, "always closed"],
    ];
  }
}

/** Which filters two images open, A and B. */
class ImagesView {
  constructor(model, image, other) {
    Object.assign(this, { model, image, other });
  }

  state(gate) {
    if (this.model.kind[gate] === KIND.on) return STATE.alwaysOn;
    if (this.model.kind[gate] === KIND.off) return STATE.alwaysOff;
    const [a, b] = [this.model.isOpen(this.image, gate), this.model.isOpen(this.other, gate)];
    if (a && b) return STATE.both;
    if (a) return STATE.onlyA;
    return b ? STATE.onlyB : STATE.closed;
  }

  paint(context, gate, ...rest) {
    paintState(context, this.state(gate), ...rest);
  }

  describe(gate) {
    const words = {
      [STATE.alwaysOn]: "open for every image",
      [STATE.alwaysOff]: "closed for every image",
      [STATE.both]: "open for both",
      [STATE.onlyA]: "open for A only",
      [STATE.onlyB]: "open for B only",
      [STATE.closed]: "closed for both",
    };
    return `${this.model.gateName(gate)}: ${words[this.state(gate)]}`;
  }

  tally(site) {
    let differ = 0;
    for (let i = site.offset; i < site.offset + site.size; i += 1) {
      differ += this.model.isOpen(this.image, i) ^ this.model.isOpen(this.other, i);
    }
    return differing(differ);
  }

  legend() {
    return [
      [STATE.onlyA, "open for A only"],
      [STATE.onlyB, "open for B only"],
      [STATE.both, "open for both"],
      [STATE.closed, "closed for both"],
      [STATE.alwaysOn, "always open"],
      [STATE.alwaysOff, "always closed"],
    ];
  }
}

/** How often two classes open each filter. */
class ClassesView {
  constructor(model, a, b) {
    Object.assign(this, { model, a, b });
  }

  difference(gate) {
    return this.model.rate(this.a, gate) - this.model.rate(this.b, gate);
  }

  paint(context, gate, ...rest) {
    const rates = [this.model.rate(this.a, gate), this.model.rate(this.b, gate)];
    if (this.model.kind[gate] === KIND.off) paintState(context, STATE.alwaysOff, ...rest);
    else paintRates(context, rates, Math.abs(this.difference(gate)) >= DIFFER, ...rest);
  }

  describe(gate) {
    const part = (group) => `${percent(this.model.rate(group, gate))} of ${this.model.groupWords(group)}`;
    return `${this.model.gateName(gate)}: opens for ${part(this.a)}, ${part(this.b)}`;
  }

  tally(site) {
    let differ = 0;
    for (let i = site.offset; i < site.offset + site.size; i += 1) differ += Math.abs(this.difference(i)) >= DIFFER;
    return differing(differ);
  }

  legend() {
    const rates =
      (values, differ) =>
      (context, ...rest) =>
        paintRates(context, values, differ, ...rest);
    return [
      [rates([0.9, 0.3], true), "left bar: how often A opens it"],
      [rates([0.3, 0.9], true), "right bar: how often B does"],
      [rates([0.7, 0.6], false), `gray: they differ by less than ${Math.round(100 * DIFFER)} points`],
      [STATE.alwaysOff, "always closed"],
    ];
  }
}
