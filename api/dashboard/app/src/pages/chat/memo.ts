// A component that is drawn again only when one of its properties is another: of a long conversation, one message.

import { Component, h, type FunctionComponent } from "preact";

export function memo<P extends object>(drawn: FunctionComponent<P>): new (props: P) => Component<P> {
  return class Memo extends Component<P> {
    override shouldComponentUpdate(next: P): boolean {
      const names = new Set([...Object.keys(next), ...Object.keys(this.props)]) as Set<keyof P>;
      return [...names].some((name) => !Object.is(next[name], (this.props as P)[name]));
    }

    override render() {
      return h(drawn, this.props as P);
    }
  };
}
