// The map of gates: a row of cells per convolution, by stage and unit. A row is one canvas, whatever its width, and one
// slider to keyboards and screen readers: its value is a filter, told in words.

const STATE = {
  closed: "closed",
  open: "open",
  openOdd: "open-odd",
  closedOdd: "closed-odd",
  alwaysOn: "always-on",
  alwaysOff: "always-off",
  onlyA: "only-a",
  onlyB: "only-b",
  both: "both",
};

/** Draws a cell; shapes differ, not only colours: filled is open, hollow is closed, a diamond and a frame are unusual. */
function paintState(context, state, x, y, size, colours) {
  const middle = size / 2;
  const polygon = (...points) => {
    context.beginPath();
    points.forEach(([across, down]) => context.lineTo(x + across * size, y + down * size));
    context.fill();
  };
  const square = (colour, margin = 0) => {
    context.fillStyle = colour;
    context.fillRect(x + margin, y + margin, size - 2 * margin, size - 2 * margin);
  };
  const painters = {
    [STATE.closed]: () => square(colours.dot),
    [STATE.open]: () => square(colours.open),
    [STATE.openOdd]: () => {
      square(colours.dot);
      context.fillStyle = colours.odd;
      polygon([0.5, -0.08], [1.08, 0.5], [0.5, 1.08], [-0.08, 0.5]);
    },
    [STATE.closedOdd]: () => {
      square(colours.odd);
      square(colours.surface, Math.max(1, size / 5));
    },
    [STATE.alwaysOn]: () => square(colours.fixed),
    [STATE.alwaysOff]: () => square(colours.fixed, middle - Math.max(0.5, size / 10)),
    [STATE.onlyA]: () => {
      square(colours.dot);
      context.fillStyle = colours.a;
      polygon([0, 0], [1, 0], [0, 1]);
    },
    [STATE.onlyB]: () => {
      square(colours.dot);
      context.fillStyle = colours.b;
      polygon([1, 0], [1, 1], [0, 1]);
    },
    [STATE.both]: () => square(colours.muted),
  };
  painters[state]();
}

/** Draws two open rates as bars side by side, in colour where they differ. */
function paintRates(context, [a, b], differ, x, y, size, colours) {
  context.fillStyle = colours.dot;
  context.fillRect(x, y, size, size);
  [
    [a, colours.a],
    [b, colours.b],
  ].forEach(([rate, colour], bar) => {
    context.fillStyle = differ ? colour : colours.fixed;
    context.fillRect(x + (bar * size) / 2, y + (1 - rate) * size, size / 2, rate * size);
  });
}

/** "stage2" -> "Stage 2": names as people read them. */
function readable(part) {
  const words = part.replace(/[_-]+/g, " ").replace(/(\D)(\d)/g, "$1 $2");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

class GateMap {
  /**
   * `view` answers for a gate: paint(context, gate, x, y, size, colours), describe(gate) in words; and for all gates of
   * a site: tally(site), a short count. `pick(gate)` is called when someone chooses a filter.
   */
  constructor(container, model, view, pick) {
    Object.assign(this, { container, model, view, pick, selected: null, changed: new Set() });
    this.basePitch = model.gateCount <= 1500 ? 15 : model.gateCount <= 5000 ? 11 : 7; // CSS pixels from cell to cell
    this.gap = this.basePitch > 8 ? 2 : 1;
    this.label = model.sites.some((site) => site.size >= 1000) ? 82 : 66; // CSS pixels of a row's name
    container.style.setProperty("--label", `${this.label - 8}px`);
    container.classList.toggle("scrolls", model.gateCount > 3000);
    this.cursor = new Map(model.sites.map((site) => [site, 0]));
    this.rows = new Map();
    this.build();
    this.hear();
    this.layout();
    new ResizeObserver(() => this.layout()).observe(container);
    document.addEventListener("theme", () => this.draw());
  }

  build() {
    const stages = new Map();
    for (const site of this.model.sites) {
      if (!stages.has(site.stage)) stages.set(site.stage, new Map());
      const units = stages.get(site.stage);
      if (!units.has(site.unit)) units.set(site.unit, []);
      units.get(site.unit).push(site);
    }
    for (const [stage, units] of stages) {
      const boxes = [...units].map(([unit, sites]) => this.buildUnit(stage, unit, sites));
      const heading = make("h4", {}, readable(stage));
      this.container.append(
        make("section", { className: "stage" }, heading, make("div", { className: "units" }, ...boxes)),
      );
    }
  }

  buildUnit(stage, unit, sites) {
    const title = unit.startsWith(`${stage}.`) ? unit.slice(stage.length + 1) : "";
    const rows = sites.map((site) => this.buildRow(site, unit));
    const heading = title ? make("h5", {}, readable(title)) : null;
    return make("div", { className: "unit", role: "group", "aria-label": unit }, heading, ...rows);
  }

  buildRow(site, unit) {
    const own = site.name.startsWith(`${unit}.`) ? site.name.slice(unit.length + 1) : site.name;
    const tally = make("span", { className: "tally" });
    const canvas = make("canvas", {
      role: "slider",
      tabIndex: this.rows.size ? -1 : 0,
      "aria-label": `Filters of ${site.name}`,
      "aria-describedby": "map-help",
      "aria-valuemin": 0,
      "aria-valuemax": site.size - 1,
      "data-site": site.name,
    });
    this.rows.set(site, { canvas, tally });
    const name = make("span", { className: "site-name", title: site.name }, readable(own), tally);
    return make("div", { className: "site" }, name, canvas);
  }

  /** Fits the rows to the width: powers of two, so that convolutions line up. */
  layout() {
    const width = this.container.clientWidth;
    if (!width || width === this.width) return;
    this.width = width;
    const room = width - this.label - 2;
    this.perLine = 4;
    while (this.perLine < 128 && 2 * this.perLine * this.basePitch <= room) this.perLine *= 2;
    // Small cells grow into the rest of the line; large ones leave it to a second unit beside the first.
    this.pitch = this.basePitch > 11 ? this.basePitch : Math.min(this.basePitch + 4, Math.floor(room / this.perLine));
    for (const [site, { canvas }] of this.rows) {
      const columns = Math.min(site.size, this.perLine);
      const lines = Math.ceil(site.size / this.perLine);
      const [across, down] = [columns * this.pitch + 2, lines * this.pitch + 2];
      const density = Math.max(1, window.devicePixelRatio);
      Object.assign(canvas, { width: Math.round(across * density), height: Math.round(down * density) });
      Object.assign(canvas.style, { width: `${across}px`, height: `${down}px` });
    }
    this.draw();
  }

  /** Where a filter's cell is in its canvas: left, top, in CSS pixels. */
  place(number) {
    return [1 + (number % this.perLine) * this.pitch, 1 + Math.floor(number / this.perLine) * this.pitch];
  }

  draw() {
    if (!this.perLine) return;
    this.colours = themeColours();
    for (const site of this.rows.keys()) this.drawRow(site);
  }

  drawRow(site) {
    const { canvas, tally } = this.rows.get(site);
    const context = canvas.getContext("2d");
    const density = Math.max(1, window.devicePixelRatio);
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const size = this.pitch - this.gap;
    for (let number = 0; number < site.size; number += 1) {
      const [x, y] = this.place(number);
      this.view.paint(context, site.offset + number, x, y, size, this.colours);
      if (this.changed.has(site.offset + number)) this.frame(context, number, this.colours.ink, 1);
    }
    const chosen = this.selected === null ? -1 : this.selected - site.offset;
    if (chosen >= 0 && chosen < site.size) this.frame(context, chosen, this.colours.ink, 2);
    if (document.activeElement === canvas) this.frame(context, this.cursor.get(site), this.colours.odd, 2);
    tally.textContent = this.view.tally(site);
    canvas.setAttribute("aria-valuenow", this.cursor.get(site));
    canvas.setAttribute("aria-valuetext", this.view.describe(site.offset + this.cursor.get(site)));
  }

  frame(context, number, colour, width) {
    const [x, y] = this.place(number);
    const size = this.pitch - this.gap;
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.strokeRect(x - 0.5, y - 0.5, size + 1, size + 1);
  }

  /** Draws anew; cells of `changed` are framed for a moment, unless the reader prefers no motion. */
  update(changed = []) {
    clearTimeout(this.calm);
    this.changed = new Set(matchMedia("(prefers-reduced-motion: reduce)").matches ? [] : changed);
    this.draw();
    if (!this.changed.size) return;
    this.calm = setTimeout(() => {
      this.changed.clear();
      this.draw();
    }, 900);
  }

  select(gate) {
    this.selected = gate;
    const site = this.model.sites[this.model.siteOf[gate]];
    this.cursor.set(site, gate - site.offset);
    this.draw();
  }

  hear() {
    for (const [site, { canvas }] of this.rows) {
      canvas.addEventListener("pointermove", (event) => this.hover(site, event));
      canvas.addEventListener("pointerleave", () => tip.hide());
      canvas.addEventListener("click", (event) => this.click(site, event));
      canvas.addEventListener("keydown", (event) => this.key(site, event));
      canvas.addEventListener("focus", () => {
        this.drawRow(site);
        if (canvas.matches(":focus-visible")) this.tipAt(site);
      });
      canvas.addEventListener("blur", () => {
        tip.hide();
        this.drawRow(site);
      });
    }
  }

  /** The filter under the pointer, or null between cells. */
  under(site, event) {
    const column = Math.floor((event.offsetX - 1) / this.pitch);
    const line = Math.floor((event.offsetY - 1) / this.pitch);
    const number = line * this.perLine + column;
    return column >= 0 && column < this.perLine && line >= 0 && number < site.size ? number : null;
  }

  hover(site, event) {
    const number = this.under(site, event);
    if (number === null) tip.hide();
    else tip.show(this.view.describe(site.offset + number), event.clientX, event.clientY);
  }

  click(site, event) {
    const number = this.under(site, event);
    if (number === null) return;
    this.enter(site);
    this.pick(site.offset + number);
  }

  /** Makes a row the one that the tab key reaches. */
  enter(site) {
    for (const [other, { canvas }] of this.rows) canvas.tabIndex = other === site ? 0 : -1;
  }

  key(site, event) {
    const { sites } = this.model;
    const neighbour = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const here = this.cursor.get(site);
    const moves = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: site.size - 1 };
    if (neighbour) {
      const next = sites[sites.indexOf(site) + neighbour];
      if (next) {
        this.enter(next);
        this.rows.get(next).canvas.focus();
        this.tipAt(next);
      }
    } else if (event.key in moves) {
      this.cursor.set(site, Math.max(0, Math.min(site.size - 1, moves[event.key])));
      this.drawRow(site);
      this.tipAt(site);
    } else if (event.key === "Enter" || event.key === " ") {
      this.pick(site.offset + here);
    } else if (event.key === "Escape") {
      tip.hide();
      return;
    } else return;
    event.preventDefault();
  }

  tipAt(site) {
    const box = this.rows.get(site).canvas.getBoundingClientRect();
    const number = this.cursor.get(site);
    const [x, y] = this.place(number);
    tip.show(this.view.describe(site.offset + number), box.left + x, box.top + y);
  }
}
