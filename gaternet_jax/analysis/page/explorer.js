// The explorer: what is picked, and what the map and the texts around it say of it.

const NEAREST = 8;
const LISTED = 6; // unusual filters named
const DIFFER = 0.25; // rates of two classes that are further apart than this differ

const differing = (count) => `${count.toLocaleString("en")} ${count === 1 ? "differs" : "differ"}`;
const badge = (letter) => make("b", { className: `badge ${letter.toLowerCase()}` }, letter);

/** What the three modes show. Each answers for the map (paint, describe, tally) and fills the texts around it. */
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
      [STATE.open, "open"], [STATE.closed, "closed"], [STATE.openOdd, `open, rare for ${name}`],
      [STATE.closedOdd, `closed, usual for ${name}`], [STATE.alwaysOn, "always open"], [STATE.alwaysOff, "always closed"],
    ];
  }
}

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
      [STATE.alwaysOn]: "open for every image", [STATE.alwaysOff]: "closed for every image", [STATE.both]: "open for both",
      [STATE.onlyA]: "open for A only", [STATE.onlyB]: "open for B only", [STATE.closed]: "closed for both",
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
      [STATE.onlyA, "open for A only"], [STATE.onlyB, "open for B only"], [STATE.both, "open for both"],
      [STATE.closed, "closed for both"], [STATE.alwaysOn, "always open"], [STATE.alwaysOff, "always closed"],
    ];
  }
}

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
    const rates = (values, differ) => (context, ...rest) => paintRates(context, values, differ, ...rest);
    return [
      [rates([0.9, 0.3], true), "left bar: how often A opens it"], [rates([0.3, 0.9], true), "right bar: how often B does"],
      [rates([0.7, 0.6], false), `gray: they differ by less than ${Math.round(100 * DIFFER)} points`],
      [STATE.alwaysOff, "always closed"],
    ];
  }
}

/** Fills the texts around the map for each of the views. */
class Texts {
  constructor(model, thumbnails, pickImage, pickGate) {
    Object.assign(this, { model, thumbnails, pickImage, pickGate });
  }

  /** Class, prediction and counts of an image. */
  card(image, badge = null, further = null) {
    const { model } = this;
    const wrong = model.isWrong(image);
    const sure = percent(model.confidence[image]);
    const prediction = `${wrong ? "✗ predicted" : "✓ predicted"} ${model.groupName(model.prediction[image])}, ${sure} sure`;
    const unknown = model.group[image] === model.unknownGroup;
    const open = model.countOpen(image);
    return make(
      "div", { className: "subject" },
      this.thumbnails.canvas(image, "portrait"),
      make(
        "div", {},
        make("p", { className: "subject-name" }, badge, `${model.groupName(model.group[image])} `, make("small", {}, `image ${model.index[image]}`)),
        make("p", { className: wrong ? "is-wrong" : "" }, unknown ? prediction.slice(2) : prediction),
        make("p", {}, make("strong", { id: badge ? "" : "open-count" }, open.toLocaleString("en")), ` of ${plural(model.gateCount, "filter")} open, ${percent(model.macs[image])} of the dense work`),
        further,
      ),
    );
  }

  image(view, previous) {
    const { model } = this;
    const note = previous === null || previous === view.image ? null : make(
      "p", { className: "note", id: "change" }, `${plural(model.distance(view.image, previous), "filter")} changed from the image before`,
    );
    const { opened, closed } = view.unusual;
    const name = model.groupWords(view.group);
    const lists = [
      this.gateList(`Open, though rare for ${name}`, opened, (gate) => `opens for ${percent(model.rate(view.group, gate))}`),
      this.gateList(`Closed, though usual for ${name}`, closed, (gate) => `opens for ${percent(model.rate(view.group, gate))}`),
    ];
    const near = make("div", { className: "strip" }, ...model.nearest(view.image, NEAREST).map(
      ([image, distance]) => this.thumbnails.button(image, this.pickImage, differing(distance)),
    ));
    byId("subject").replaceChildren(this.card(view.image, null, note));
    byId("differences").replaceChildren(
      make("h4", {}, "Images with the most similar gates"), near, make("div", { className: "pair" }, ...lists),
    );
    const odd = `${opened.length + closed.length} unusual for its class`;
    announce(`${this.thumbnails.describe(view.image)}: ${model.countOpen(view.image)} of ${plural(model.gateCount, "filter")} open, ${odd}`);
  }

  images(view) {
    const { model } = this;
    const distance = model.distance(view.image, view.other);
    byId("subject").replaceChildren(
      make("div", { className: "pair" }, this.card(view.image, badge("A")), this.card(view.other, badge("B"))),
      make("p", { className: "verdict" }, make("strong", {}, plural(distance, "filter")), ` of ${model.gateCount.toLocaleString("en")} ${distance === 1 ? "differs" : "differ"}`),
    );
    const only = (state) => model.dependentGates().filter((gate) => view.state(gate) === state);
    const rate = (gate) => `opens for ${percent(model.openRate[gate])} of all`;
    byId("differences").replaceChildren(make(
      "div", { className: "pair" },
      this.gateList("Open for A only", only(STATE.onlyA), rate), this.gateList("Open for B only", only(STATE.onlyB), rate),
    ));
    announce(`${this.thumbnails.describe(view.image)}, and ${this.thumbnails.describe(view.other)}: of the filters, ${differing(distance)}`);
  }

  classes(view) {
    const { model, thumbnails } = this;
    const [nameA, nameB] = [view.a, view.b].map((group) => model.groupName(group));
    const sample = (group, letter) => make(
      "div", { className: "class-sample" },
      make("p", { className: "subject-name" }, badge(letter), model.groupName(group), " ", make("small", {}, plural(model.groupCount[group], "image"))),
      make("div", { className: "strip" }, ...(model.members.get(group) ?? []).slice(0, 5).map((image) => thumbnails.canvas(image))),
    );
    const gates = model.dependentGates();
    const moreFor = (sign) => gates
      .filter((gate) => sign * view.difference(gate) >= DIFFER)
      .sort((g, h) => sign * (view.difference(h) - view.difference(g)));
    const [moreA, moreB] = [moreFor(1), moreFor(-1)];
    const known = Math.max(view.a, view.b) < model.unknownGroup;
    const overlap = known ? model.overlap[view.a * model.unknownGroup + view.b] / 65535 : null;
    const verdict = make(
      "p", { className: "verdict" },
      make("strong", {}, `${plural(moreA.length + moreB.length, "filter")} open more often for one than for the other`),
      overlap === null ? null : `; their open filters overlap by ${percent(overlap)}`,
    );
    const rates = (gate) => `${percent(model.rate(view.a, gate))} against ${percent(model.rate(view.b, gate))}`;
    byId("subject").replaceChildren(make("div", { className: "pair" }, sample(view.a, "A"), sample(view.b, "B")), verdict);
    byId("differences").replaceChildren(make(
      "div", { className: "pair" },
      this.gateList(`More often open for ${nameA}`, moreA, rates), this.gateList(`More often open for ${nameB}`, moreB, rates),
    ));
    announce(`${nameA} against ${nameB}: ${verdict.textContent}`);
  }

  gateList(title, gates, note) {
    const items = gates.slice(0, LISTED).map((gate) => make(
      "li", {}, gateButton(this.model, gate, this.pickGate), make("span", { className: "note" }, note(gate)),
    ));
    const rest = gates.length > LISTED ? make("p", { className: "note" }, `and ${(gates.length - LISTED).toLocaleString("en")} more, marked above`) : null;
    const body = items.length ? make("ul", { className: "gates" }, ...items) : make("p", { className: "note" }, "None.");
    return make("div", {}, make("h4", {}, `${title} (${gates.length.toLocaleString("en")})`), body, rest);
  }
}
